"card-classifier runs, over folders as people and accidents leave them under outputs/."

import json
import os
import shutil
import subprocess
import sys
import uuid

import pytest
from typer.testing import CliRunner

from card_classifier.bundle import read_bundle, released_bundle
from card_classifier.cli.main import app
from card_classifier.configuration import checkout

MARK = f"zz{uuid.uuid4().hex[:8]}"  # In the name of every folder made here


def runs(*words: str, **options):
    "Runs `card-classifier runs …`."
    return CliRunner().invoke(app, ["runs", *words], env={"COLUMNS": "300", "FORCE_COLOR": ""}, **options)


@pytest.fixture
def make_run():
    "Makes folders of runs in the checkout's outputs/, and takes them away."
    made = []

    def make(name: str, settings: str = "train: {epochs: 2}\nmodel: {task: classifier}\n", **files: object):
        run = checkout() / "outputs" / name
        run.mkdir(parents=True)
        made.append(run)
        if settings:
            (run / "settings.yaml").write_text(settings, encoding="utf-8")
        for file, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (run / f"{file}.json").write_text(text, encoding="utf-8")
        return run

    yield make
    for run in made:
        shutil.rmtree(run, ignore_errors=True)


def measured(accuracy: float, **more) -> dict:
    "Metrics of a finished run."
    valid = {"accuracy": accuracy, "accuracy_low": accuracy - 0.02, "accuracy_high": accuracy + 0.01, "n": 265}
    return {"valid": valid, "minutes": 3.0, "peak_memory_gb": 1.0} | more


def states() -> dict[str, str]:
    "What is listed of the folders made here."
    listed = json.loads(runs("--json", "-f", MARK).stdout)
    return {one["name"].removeprefix(MARK): one["state"] for one in listed}


def test_folders_are_listed_as_what_they_are(make_run):
    make_run(f"{MARK} fertig mit Ümlaut", metrics=measured(0.97))
    make_run(f"{MARK}cut", metrics=json.dumps(measured(0.9))[:40])
    make_run(f"{MARK}list", metrics=[1, 2])
    make_run(f"{MARK}odd", metrics={"valid": "good", "data": 3})
    make_run(f"{MARK}binary", settings="\x00\x01: [")
    make_run(f"{MARK}empty", settings=" ")
    make_run(f"{MARK}noted", settings="", run={"name": "killed before it had settings"})
    make_run(f"{MARK}holiday", settings="")
    (make_run(f"{MARK}history", history="{") / "settings.yaml").unlink()
    assert states() == {
        " fertig mit Ümlaut": "finished", "cut": "broken", "list": "broken", "odd": "broken", "binary": "broken",
        "empty": "broken", "noted": "broken", "holiday": "foreign", "history": "foreign",
    }  # fmt: skip
    table = runs("-f", MARK)
    assert table.exit_code == 0 and "97.0 % (95.0–98.0)" in table.stdout and "not a run: a folder" in table.stdout
    for name in ("cut", "odd", "binary", "holiday", " fertig mit Ümlaut"):
        shown = runs("show", f"{MARK}{name}")
        assert shown.exit_code == 0, shown.output


def test_a_clock_that_runs_backwards_changes_no_state_and_no_order(make_run):
    late = make_run(f"{MARK}late", metrics=measured(0.9), run={"created": "2026-01-02T00:00:00+00:00"})
    make_run(f"{MARK}early", metrics=measured(0.8), run={"created": "2026-01-01T00:00:00+00:00"})
    make_run(f"{MARK}future", run={"created": "2199-01-01T00:00:00+00:00"}, history={"metric": "accuracy", "rows": []})
    for file in [*late.iterdir(), late]:
        os.utime(file, (0, 0))
    assert list(states().items()) == [("future", "stopped"), ("late", "finished"), ("early", "finished")]
    by_accuracy = json.loads(runs("--json", "-f", MARK, "--sort", "accuracy", "--reverse").stdout)
    assert [one["name"].removeprefix(MARK) for one in by_accuracy] == ["early", "late", "future"]


def test_what_a_model_descends_from_stays(make_run):
    networks = read_bundle(released_bundle()).networks
    ancestor = next(one["run"] for network in networks.values() for one in network.ancestors)
    if (checkout() / "outputs" / ancestor).exists():
        pytest.skip("the released model's own run lies here")
    run = make_run(ancestor, metrics=measured(0.97))
    refused = runs("remove", ancestor, "--yes")
    assert refused.exit_code == 2 and "the released model descends from it" in refused.stderr
    assert (run / "metrics.json").is_file()


def test_a_run_is_removed_when_asked_and_its_parent_only_after_it(make_run):
    parent = make_run(f"{MARK}parent", metrics=measured(0.9))
    child = make_run(f"{MARK}child ü", settings=f"model: {{start_from: {MARK}parent}}\n")
    assert runs("remove", parent.name, "-y").exit_code == 2
    assert runs("remove", child.name, input="n\n").exit_code == 2 and child.exists()
    assert runs("remove", child.name, input="y\n").exit_code == 0 and not child.exists()
    assert runs("remove", parent.name, "-y").exit_code == 0 and not parent.exists()
    foreign = make_run(f"{MARK}holiday", settings="")
    assert runs("remove", foreign.name, "-y").exit_code == 2 and foreign.exists()
    assert runs("remove", MARK + "nobody", "-y").exit_code == 2


def test_the_page_escapes_what_files_say(make_run, tmp_path):
    for number in range(2):
        make_run(f"{MARK}{number}", settings=f"model: {{arch: '<script>{number}</script>'}}\n")
    result = runs("compare", f"{MARK}0", f"{MARK}1", "--to", str(tmp_path / "Seite mit Ümlaut.html"))
    assert result.exit_code == 0, result.output
    page = (tmp_path / "Seite mit Ümlaut.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;0" in page and "<script>0" not in page


def test_listing_imports_nothing_of_the_training_stack():
    code = "import sys; from card_classifier.cli.main import app\ntry: app(['runs'])\nexcept SystemExit: pass\n"
    code += "print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stderr.split()) & {"torch", "fastai", "timm", "wandb", "hydra", "matplotlib", "dvc"}
