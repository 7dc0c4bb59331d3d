"The pages about the released model tell the released model's figures, those that a user gets first."
import json
import re
import runpy
import subprocess
import sys
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
    for text in ((ROOT / "reports" / "measured.md").read_text(encoding="utf-8"), outputs_of("model_card")):
        assert whole in text and alone in text
        assert whole == alone or text.index(whole) < text.index(f"| {alone} |")


def test_the_report_is_made_from_its_results():
    report = runpy.run_path(str(ROOT / "reports" / "report.py"))
    results = json.loads((ROOT / "reports" / "results.json").read_text(encoding="utf-8"))
    released = read_bundle(released_bundle())
    report["check_results"](results, released)
    template = (ROOT / "reports" / "template.md").read_text(encoding="utf-8")
    made = template.format(**report["report_text"](results, released))
    assert (ROOT / "reports" / "measured.md").read_text(encoding="utf-8") == made, "run make report"
    figures = re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", made)
    assert len(figures) == 4
    assert all(len(alt) > 40 and (ROOT / "reports" / file).is_file() for alt, file in figures)
    results["whole_way"]["model_version"] = "another"
    with pytest.raises(SystemExit, match="another model"):
        report["check_results"](results, released)


ANSWERS = runpy.run_path(str(ROOT / "reports" / "answers.py"))
TEXT = (ROOT / "reports" / "README.md").read_text(encoding="utf-8")


def test_every_answer_of_the_report_is_within_its_limits():
    assert ANSWERS["faults"](TEXT) == []


@pytest.mark.parametrize(("old", "new", "fault"), [
    ("### Question 7\n", "### Question 70\n", "missing: 7"),
    ("> **How many tests did you write, and what do they test?**", "", "question 7: the question itself"),
    ("](figures/bucket.png)", "](figures/none.png)", "figures/none.png: there is no such file"),
    ("](figures/bucket.png)", "](bucket.svg)", "pictures lie in figures/"),
    ("This does not apply: the", "The " + "word " * 10_000, "question 1: "),
])
def test_faults_of_the_report_are_found(old, new, fault):
    assert old in TEXT
    assert any(fault in one for one in ANSWERS["faults"](TEXT.replace(old, new, 1)))


def test_words_and_pictures_are_counted_against_each_limit():
    whole = ANSWERS["read_answers"](TEXT)
    for one in whole:
        fewest, most = ANSWERS["WORDS"].get(one.number, (1, 10_000))
        for text, word in (("few", "fewer"), ("word " * (most + 1), "more")):
            found = ANSWERS["faults"](TEXT.replace(one.text, text))
            is_told = any(f"question {one.number}: " in fault and word in fault for fault in found)
            assert is_told == (word == "more" or fewest > 1), (one.number, found)
        if one.number in ANSWERS["PICTURES"]:
            assert any("pictures, asked" in fault for fault in ANSWERS["faults"](TEXT.replace(one.text, "word " * 250)))


def test_the_report_is_checked_and_becomes_a_page(tmp_path):
    def run(*arguments: str) -> str:
        "What the script says."
        return subprocess.run([sys.executable, ROOT / "reports" / "report.py", *arguments], check=True, cwd=tmp_path,
                              capture_output=True, text=True).stdout

    assert "every answer is within its limits" in run("check")
    run("html", "--to", str(tmp_path / "report.html"))
    made = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert made.count("<h3>Question") == 31 and 'src="figures' not in made and made.count("data:image/png") >= 8


def test_the_checklist_leads_to_what_is_there():
    text = (ROOT / "reports" / "checklist.md").read_text(encoding="utf-8")
    modules = [int(one) for one in re.findall(r"^\| M(\d+) ", text, re.M)]
    assert modules == list(range(2, 33))
    for name in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / "reports" / name).exists(), name
