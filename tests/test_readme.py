"The README says what the front page says, with links and pictures that lead to the same files from the root."
import re
import runpy
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULE = runpy.run_path(str(ROOT / "reports" / "readme.py"))


def page(*cells) -> nbformat.NotebookNode:
    "A notebook of these cells."
    return nbformat.v4.new_notebook(cells=list(cells))


@pytest.mark.parametrize(("written", "wanted"), [
    ("[card](model_card.ipynb#how-good-it-is)", "[card](nbs/model_card.ipynb#how-good-it-is)"),
    ("![demo](images/demo-phone.png){width=50%}", "![demo](nbs/images/demo-phone.png)"),
    ("[report](../reports/README.md)", "[report](reports/README.md)"),
    ("[report](report.qmd)", "[report](reports/measured.md)"),
    ("[![a](images/demo-phone.png)](model_card.ipynb)", "[![a](nbs/images/demo-phone.png)](nbs/model_card.ipynb)"),
    ('<img src="images/demo-phone.png" alt="a phone">', '<img src="nbs/images/demo-phone.png" alt="a phone">'),
    ('[card](model_card.ipynb "All figures")', '[card](nbs/model_card.ipynb "All figures")'),
    ("[card]: model_card.ipynb", "[card]: nbs/model_card.ipynb"),
    ("[site](https://example.org/a) [below](#train) <a href='mailto:a@b.c'>", None),
    ("`[x](model_card.ipynb)` and `a[0](1)`", None),
    ("```python\n[x](nowhere.png)\n```", None),
])
def test_links_lead_to_the_same_files_and_code_stays(written, wanted):
    assert MODULE["for_readme"](written, ROOT / "nbs") == (wanted or written)


@pytest.mark.parametrize(("link", "reason"), [
    ("nowhere.png", "does not exist"), ("../../secret", "out of the repository")])
def test_a_link_that_leads_nowhere_is_an_error(link, reason):
    with pytest.raises(ValueError, match=reason):
        MODULE["for_readme"](f"![x]({link})", ROOT / "nbs")


def test_front_matter_and_hidden_code_are_left_out_and_results_are_kept(monkeypatch):
    result = nbformat.v4.new_output("display_data", {"text/markdown": "[card](model_card.ipynb)"})
    notebook = page(
        nbformat.v4.new_raw_cell("---\ntitle: raw\n---"),
        nbformat.v4.new_markdown_cell("---\ntitle: front\n---\n\n# Name\n\n---\n\nText"),
        nbformat.v4.new_code_cell("#| echo: false\nshow()", outputs=[result]),
        nbformat.v4.new_code_cell("#| hide\nimport os"),
    )
    file = ROOT / "nbs" / "front_page_of_a_test.ipynb"
    try:
        nbformat.write(notebook, file)
        monkeypatch.setitem(MODULE["PAGES"], "TEST.md", "nbs/front_page_of_a_test.ipynb")
        text = MODULE["page_text"]("TEST.md")
    finally:
        file.unlink(missing_ok=True)
    note = MODULE["NOTE"].format("nbs/front_page_of_a_test.ipynb")
    assert text == f"{note}\n\n# Name\n\n---\n\nText\n\n[card](nbs/model_card.ipynb)\n"


def test_every_file_that_the_readme_links_to_is_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    prose = MODULE["CODE"].sub("", text)
    links = [found[2].partition("#")[0] for found in MODULE["LINK"].finditer(prose)]
    files = [link for link in links if link and not re.match(r"[a-z]+:", link)]
    assert len(files) > 5
    assert [file for file in files if not (ROOT / file).exists()] == []
