"""What a pull request changes in training, beside the commit it branches from: `make training-report`.

usage: training_report.py BASE

Takes the newest run of this checkout and the newest one below the checkout BASE, and writes `outputs/report/`: the
report that report.yml comments, and the executed notebook. Both runs were made on the same machine.
"""

import json
import os
import shutil
import sys
from pathlib import Path

FIGURES = (  # What the row says, where metrics.json has it, how it is written
    ("accuracy on valid", ("valid", "accuracy"), "{:.1%}"),
    ("95 % interval from", ("valid", "accuracy_low"), "{:.1%}"),
    ("to", ("valid", "accuracy_high"), "{:.1%}"),
    ("accuracy on varied valid images", ("valid_varied", "accuracy"), "{:.1%}"),
    ("accuracy on test", ("test", "accuracy"), "{:.1%}"),
    ("negative log likelihood on valid", ("valid", "nll"), "{:.4f}"),
    ("calibration error on valid", ("valid", "ece"), "{:.4f}"),
    ("temperature", ("temperature",), "{:.3f}"),
    ("minutes of training", ("minutes",), "{:.2f}"),
    ("peak memory in GB", ("peak_memory_gb",), "{:.2f}"),
)


def newest_run(outputs: Path) -> Path | None:
    "The run that was finished last."
    finished = sorted(outputs.glob("*/metrics.json"), key=lambda file: file.stat().st_mtime)
    return finished[-1].parent if finished else None


def figure(metrics: dict, path: tuple[str, ...]) -> float | None:
    "A number of metrics.json; None where a run has none."
    value = metrics
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def rows(head: dict, base: dict | None) -> list[list[str]]:
    "A row for each figure: main, this, the difference."
    table = []
    for name, path, form in FIGURES:
        ours, theirs = figure(head, path), figure(base or {}, path)
        if ours is None:
            continue
        difference = "" if theirs is None else form.replace("{:", "{:+").format(ours - theirs)
        table.append([name, "none" if theirs is None else form.format(theirs), form.format(ours), difference])
    return table


def main() -> int:
    "Writes the report; the exit code is 1 if nothing was trained here."
    if len(sys.argv) != 2:
        print(__doc__.splitlines()[2], file=sys.stderr)
        return 2
    run = newest_run(Path("outputs"))
    if run is None:
        print("error: no finished run under outputs/: make run", file=sys.stderr)
        return 1
    head = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    before = newest_run(Path(sys.argv[1]) / "outputs")
    base = before and json.loads((before / "metrics.json").read_text(encoding="utf-8"))
    n_images = figure(head, ("valid", "n"))
    notes = [f"One of the {n_images} images of valid is {100 / n_images:.2f} points. "
             "Differences within the interval mean nothing.",
             "Rendered cards, a miniature network: this shows that training works, not how good the release is."]
    if base is None:
        notes.append("The commit it branches from was not trained to its end: no comparison.")
    elif all(difference in ("+0.0%", "+0.0000", "+0.000") for *_, difference in rows(head, base)[:-2]):
        notes.append("Every figure but time and memory is the same.")
    table = {"title": "Both on the same machine", "columns": ["figure", "main", "this", "difference"],
             "rows": rows(head, base)}
    report = {"kind": "training", "pull_request": int(os.environ.get("PULL_REQUEST") or 0),
              "commit": os.environ.get("COMMIT", ""), "tables": [table], "notes": notes}
    folder = Path("outputs/report")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "run").mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    for name in ("train.ipynb", "metrics.json", "settings.yaml"):
        shutil.copy(run / name, folder / "run" / name)
    for row in [table["columns"], *table["rows"]]:
        print("".join(f"{cell:<36}" if number == 0 else f"{cell:>12}" for number, cell in enumerate(row)))
    print(f"the report lies in {folder}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
