"""What a pull request changes in the data: `make data-report`, after `make data-pull` and a short training.

BEFORE, an environment variable, is the commit that it branches from. Writes `outputs/report/report.json`, which
report.yml comments, and `outputs/report/run/`: the page with the pictures, and the executed notebook of the training.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from training_report import figure, newest_run

FOLDER = Path("outputs/report")
KINDS = ("added", "removed", "relabelled", "moved", "changed")
N_EXAMPLES, N_CLASSES = 40, 20


def difference(before: str) -> dict:
    "What `card-classifier data diff` says; its page with the pictures is kept. Raises `ValueError` with its error."
    if not re.fullmatch(r"[0-9a-f]{40}", before):
        raise ValueError(f"BEFORE should be a full commit hash, not {before!r}")
    words = ["card-classifier", "data", "diff", before, "--json", "--page", str(FOLDER / "run" / "difference.html")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError((done.stderr.strip().splitlines() or ["data diff failed"])[-1].removeprefix("error: "))
    return json.loads(done.stdout)


def count_rows(found: dict) -> list[list]:
    "How many images each split has, before and now, and how many the audit leaves out of training."
    before, after = found["before"], found["after"]
    rows = [[split, before["counts"].get(split, 0), number] for split, number in after["counts"].items()]
    return [*rows, ["left out by the audit", *(str(one["left_out"]) for one in (before, after))]]


def example_rows(found: dict) -> list[list]:
    "The first images of each kind of change."
    return [[kind, one["path"], one.get("class_before", ""), one["class"]]
            for kind in KINDS for one in found[kind][:N_EXAMPLES // len(KINDS)]]


def audit_rows() -> list[list]:
    "What the audit of this version found, as it stands in its shards."
    from card_classifier.data.audit import SUMMARY_LABELS
    from card_classifier.data.shards import open_shards

    counts = open_shards(Path("data")).description["audit"]["summary"]
    return [[SUMMARY_LABELS[name], number] for name, number in counts.items()]


def main() -> int:
    "Writes the report; the exit code is 1 if the versions can't be compared."
    shutil.rmtree(FOLDER, ignore_errors=True)
    (FOLDER / "run").mkdir(parents=True)
    try:
        found = difference(os.environ.get("BEFORE", ""))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    changes = [[kind, len(found[kind])] for kind in KINDS] + [["unchanged", found["unchanged"]]]
    tables = [{"title": "Changes", "columns": ["images", "number"], "rows": changes},
              {"title": "Splits", "columns": ["images", "main", "this"], "rows": count_rows(found)}]
    tables.append({"title": "Audit", "columns": ["found", "number"], "rows": audit_rows()})
    examples = example_rows(found)
    if examples:
        columns = ["change", "image", "class before", "class"]
        tables.append({"title": "The first of each kind", "columns": columns, "rows": examples})
    run, notes = newest_run(Path("outputs")), []
    if run:
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        names = {"accuracy on valid": "accuracy", "from": "accuracy_low", "to": "accuracy_high"}
        shown = [[name, figure(metrics, ("valid", where))] for name, where in names.items()]
        rows = [[name, f"{value:.1%}"] for name, value in shown if value is not None]
        tables.append({"title": "A short training on it", "columns": ["figure", "this"], "rows": rows})
        notes.append("The training is short: it shows that the data can be learned from.")
        shutil.copy(run / "train.ipynb", FOLDER / "run" / "train.ipynb")
    number = int(os.environ.get("PULL_REQUEST") or 0)
    report = {"kind": "data", "pull_request": number, "tables": tables, "notes": notes}
    (FOLDER / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(", ".join(f"{number} {kind}" for kind, number in changes))
    print(f"the report lies in {FOLDER}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
