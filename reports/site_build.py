"""Builds the docs site: `make docs`, or `python reports/site_build.py [--processed]`.

What nbdev does needs no Quarto: it executes the imports of each notebook, documents what is exported and resolves
links. The pages that are no notebooks, the report and the changelog, are brought into `nbs/` first, and `llms.txt`
lists every page for programs that read. Where Quarto is installed, the site is rendered into `_docs/`.
"""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import yaml
from nbdev.doclinks import _build_modidx as build_index
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
PROCESSED = ROOT / "_proc"
REPOSITORY = "https://github.com/card-classifier/card_classifier/blob/main/"
RECORDED_FIGURES = {  # Executed runs are left as they were; a run keeps its figures under these names
    "training-scenes": "Composed scenes as the detector sees them in training",
    "training-batch": "A training batch of the classifier, each image with its label",
    "learning-curves": "Loss and validation accuracy over the epochs",
    "found": "Validation scenes with the quadrilaterals that the detector found",
    "reliability": "Reliability diagram: accuracy over stated confidence, close to the diagonal",
    "per-class": "Accuracy of each class, rank and suit with its interval",
    "confusion": "Confusion matrix of the 53 classes; nearly all counts lie on the diagonal",
    "mistakes": "The most confident mistakes, each with its label and the answer",
}
LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def page_link(target: str, folder: str) -> str:
    "Where a link of a Markdown file in `folder` of the repository leads to on the site."
    if "://" in target or target.startswith(("#", "mailto:")):
        return target
    path = (ROOT / folder / target.partition("#")[0]).resolve()
    anchor = "#" + target.partition("#")[2] if "#" in target else ""
    if path.is_relative_to(NBS) and not path.is_dir():
        return path.relative_to(NBS).as_posix() + anchor
    if path.is_relative_to(ROOT / "reports" / "figures"):
        return f"report_figures/{path.name}"
    return REPOSITORY + path.relative_to(ROOT).as_posix() + anchor


def write_page(name: str, source: Path, description: str) -> None:
    "Makes a page of a Markdown file of the repository, with its links as they are on the site."
    text = re.sub(r"<!--.*?-->\s*", "", source.read_text(encoding="utf-8"), flags=re.DOTALL)
    title, _, body = text.partition("\n")
    folder = source.parent.relative_to(ROOT).as_posix()
    body = LINK.sub(lambda match: match[1] + page_link(match[2], folder) + match[3], body)
    front_matter = yaml.safe_dump({"title": title.removeprefix("# "), "description": description}, allow_unicode=True)
    (NBS / name).write_text(f"---\n{front_matter}---\n{body}", encoding="utf-8", newline="\n")


def sidebar_pages(contents: list | None = None) -> list[tuple[str, list[str]]]:
    "The sections of the sidebar with their pages, in order; nested sections are joined by a colon."
    if contents is None:
        contents = yaml.safe_load((NBS / "sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    sections: list[tuple[str, list[str]]] = []
    for item in contents:
        if isinstance(item, str):
            sections.append(("", [item]))
        elif "section" in item:
            own = [item["href"]] if "href" in item else []
            own += [one if isinstance(one, str) else one["href"] for one in item["contents"] if "section" not in one]
            sections.append((item["section"], own))
            nested = [one for one in item["contents"] if not isinstance(one, str) and "section" in one]
            sections += [(f"{item['section']}: {name}", pages) for name, pages in sidebar_pages(nested)]
        else:
            sections.append(("", [item["href"]]))
    return sections


def title_and_description(page: str) -> tuple[str, str]:
    "What a page is called, and its first sentence."
    text = (NBS / page).read_text(encoding="utf-8")
    if not page.endswith(".ipynb"):
        front_matter = yaml.safe_load(text.split("---")[1])
        return front_matter["title"], front_matter["description"]
    first = nbformat.reads(text, 4).cells[0].source
    title = re.search(r"^# (.+)$", first, re.MULTILINE)
    quote = re.search(r"^> (.+)$", first, re.MULTILINE)
    return title[1], quote[1]


def output_name(page: str) -> str:
    "The file that a page becomes: nbdev leaves the numbers of notebooks out."
    path = Path(page)
    stem = re.sub(r"^\d+[a-z]?_", "", path.stem) if path.suffix == ".ipynb" else path.stem
    return (path.parent / f"{stem}.html").as_posix()


def llms_text() -> str:
    "The list of all pages for programs: https://llmstxt.org. Quarto leaves each page as Markdown beside its HTML."
    settings = (ROOT / "settings.ini").read_text(encoding="utf-8")
    host, base = (re.search(rf"^{name} = (.+)$", settings, re.MULTILINE)[1] for name in ("doc_host", "doc_baseurl"))
    title, description = title_and_description("index.ipynb")
    lines = [f"# {title}", "", f"> {description}", ""]
    for section, pages in sidebar_pages():
        lines += ["", f"## {section}", ""] if section else []
        for page in pages:
            title, description = title_and_description(page)
            name = f"{output_name(page)}.md" if page.endswith(".ipynb") else Path(page).with_suffix(".md").as_posix()
            lines.append(f"- [{title}]({host}{base}/{name}): {description}")
    return "\n".join(lines) + "\n"


def finish_signature(text: str) -> str:
    "A documented signature without Markdown marks in its comments, which code shows as they are."
    signature = re.compile(r"(?<=```python\n)(.*?)(?=\n```)", re.DOTALL)
    return signature.sub(lambda match: match[0].replace("`", "'"), text, count=1)


def finish_links(text: str) -> str:
    "nbdev links a method to a heading of its own, which only methods that are added later have: to its class instead."
    return re.sub(r"(card_classifier/[\w/]+\.html#\w+)\.\w+", r"\1", text)


HTML_BLOCK = "````{=html}"  # Pandoc's fence of HTML in Markdown; four strokes, because HTML may hold three


def finish_cell(cell: nbformat.NotebookNode) -> None:
    "Gives a cell's pictures their alternative text as Quarto reads it, and its signature without Markdown."
    if re.search(r"^#\|\s*output:\s*false", cell.source, re.MULTILINE):
        cell.outputs = []
    quoted = re.compile(r"^#\|\s*fig-alt:\s*([^\"'\s].*)$", re.MULTILINE)  # A colon in it would break Quarto's YAML
    cell.source = quoted.sub(lambda match: "#| fig-alt: " + json.dumps(match[1], ensure_ascii=False), cell.source)
    for output in cell.get("outputs", []):
        html = "".join(output.get("data", {}).get("text/html", ""))
        if html and "<script" not in html:
            # Quarto takes an HTML output for a widget and loads jQuery and require.js from another host for it
            del output.data["text/html"]
            output.data["text/markdown"] = f"{HTML_BLOCK}\n{html.rstrip()}\n{HTML_BLOCK[:4]}"
        about = [one for one in output.get("metadata", {}).values() if isinstance(one, dict)]
        kept = [one["alt"] for one in about if "alt" in one]
        if "keep(" in cell.source:
            kept += [text for name, text in RECORDED_FIGURES.items() if f'"{name}"' in cell.source]
        if kept and "fig-alt" not in cell.source:
            cell.source = f"#| fig-alt: {json.dumps(kept[0], ensure_ascii=False)}\n{cell.source}"
        if "show_doc(" in cell.source and "text/markdown" in output.get("data", {}):
            output.data["text/markdown"] = finish_links(finish_signature(output.data["text/markdown"]))


def finish_notebook(file: Path) -> None:
    "What nbdev leaves to do in a processed page."
    notebook = nbformat.read(file, 4)
    before = nbformat.writes(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = finish_links(cell.source)
        if cell.cell_type == "code":
            finish_cell(cell)
    if "widget-view" not in nbformat.writes(notebook):
        notebook.metadata.pop("widgets", None)  # nbdev leaves it everywhere; Quarto then loads scripts of other hosts
    if nbformat.writes(notebook) != before:
        nbformat.write(notebook, file)


def process(force: bool = True) -> None:
    "Everything of the build that needs no Quarto; results in `_proc/`. Unchanged notebooks are kept unless `force`."
    shutil.copytree(ROOT / "reports" / "figures", NBS / "report_figures", dirs_exist_ok=True)
    write_page("report.qmd", ROOT / "reports" / "measured.md", "How the released model was made and how good it is.")
    write_page("answers.qmd", ROOT / "reports" / "README.md", "What this project is and how it was made.")
    write_page("checklist.qmd", ROOT / "reports" / "checklist.md", "Every module of the course with its place here.")
    write_page("changelog.qmd", ROOT / "CHANGELOG.md", "What changed from release to release.")
    (NBS / "llms.txt").write_text(llms_text(), encoding="utf-8", newline="\n")
    refresh_quarto_yml()
    build_index()
    if force:
        shutil.rmtree(PROCESSED, ignore_errors=True)
    try:
        proc_nbs(n_workers=0)
    except Exception as error:  # nbdev's own names the notebook and the cell
        sys.exit(f"the docs can't be built. {error}")
    for page in PROCESSED.rglob("*.ipynb"):
        finish_notebook(page)


if __name__ == "__main__":
    if "--processed" not in sys.argv[1:]:  # `make docs-check` has done so
        process()
    if shutil.which("quarto") is None:
        print(f"processed into {PROCESSED.name}/; Quarto is not installed, so no HTML was made: https://quarto.org")
        sys.exit()
    os.utime(ROOT / "README.md")  # nbdev makes it anew from an index that is younger; ours comes from `make readme`
    subprocess.run(["nbdev_docs"], cwd=ROOT, check=True)
    print("the site lies in _docs/: open _docs/index.html")
