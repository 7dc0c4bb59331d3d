"The pages about the released model tell the released model's figures, those that a user gets first."
import json
import re
import runpy
from pathlib import Path

import nbformat
import pytest

from card_classifier.bundle import read_bundle, released_bundle

ROOT = Path(__file__).resolve().parent.parent


def outputs_of(name: str) -> str:
    "What the cells of a page show, as text."
    notebook = nbformat.read(ROOT / "nbs" / f"{name}.ipynb", 4)
    return json.dumps([cell.outputs for cell in notebook.cells if cell.cell_type == "code"], ensure_ascii=False)


def test_pages_about_the_released_model_are_about_the_released_model():
    released = read_bundle(released_bundle())
    runs = [run for run in released.classifier.training["settings"]["model.start_from"].split("+") if run]
    is_mean = len(runs) > 1
    records = {"mean_run": released.name, "real_run": runs[0]} if is_mean else {"real_run": released.name}
    pages = dict.fromkeys(("model_card", "studies/photos", "studies/robustness"), released.model_version)
    for name, told in {**pages, **{f"logbook/{page}": run for page, run in records.items()}}.items():
        assert told in outputs_of(name), f"{name} tells of another model: make quality, make report"
    whole = {"whole_way", "real_photographs", "composed_photographs", "no_card"}
    assert released.metrics.keys() >= whole, "make quality"
    assert released.classifier.metrics.keys() >= {"test", "valid", "robustness"}, "make quality"


def test_report_and_model_card_tell_the_whole_way_first():
    released = read_bundle(released_bundle())
    whole, alone = (f"{one['n_correct']} of {one['n']}" for one in (
        released.metrics["whole_way"]["test"], released.classifier.metrics["test"]))
    for text in ((ROOT / "reports" / "README.md").read_text(encoding="utf-8"), outputs_of("model_card")):
        assert whole in text and alone in text
        assert whole == alone or text.index(whole) < text.index(f"| {alone} |")


def test_the_report_is_made_from_its_results():
    report = runpy.run_path(str(ROOT / "reports" / "report.py"))
    results = json.loads((ROOT / "reports" / "results.json").read_text(encoding="utf-8"))
    released = read_bundle(released_bundle())
    report["check_results"](results, released)
    template = (ROOT / "reports" / "template.md").read_text(encoding="utf-8")
    made = template.format(**report["report_text"](results, released))
    assert (ROOT / "reports" / "README.md").read_text(encoding="utf-8") == made, "run make report"
    figures = re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", made)
    assert len(figures) == 4
    assert all(len(alt) > 40 and (ROOT / "reports" / file).is_file() for alt, file in figures)
    results["whole_way"]["model_version"] = "another"
    with pytest.raises(SystemExit, match="another model"):
        report["check_results"](results, released)
