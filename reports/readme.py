"""Makes README.md and CONTRIBUTING.md from the pages of the site that say the same.

What is kept: the prose, and the results of the cells whose code the docs hide.
"""
import os
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Made from {} by `make readme`: edit that. -->"
PAGES = {"README.md": "nbs/index.ipynb", "CONTRIBUTING.md": "nbs/guides/26_contributing.ipynb"}
SITE_PAGES = {  # Pages that only the site has, and what they are made from
    "nbs/report.qmd": "reports/measured.md",
    "nbs/answers.qmd": "reports/README.md",
    "nbs/checklist.qmd": "reports/checklist.md",
    "nbs/changelog.qmd": "CHANGELOG.md",
}
CODE = re.compile(r"(^(`{3,}|~{3,}).*?^\2[^\n]*$|`+[^`\n]+`+)", re.DOTALL | re.MULTILINE)  # Links in code are no links
LINK = re.compile(r"(\]\(|\]:[ \t]+|\b(?:src|href)=[\"'])([^)\s\"']+)")  # Of Markdown, of a reference, and of HTML
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|//|#|/", re.IGNORECASE)  # A scheme, a host, an anchor, a path of the site
FRONT_MATTER = re.compile(r"\A---\n.*?^---\s*$", re.DOTALL | re.MULTILINE)
ATTRIBUTES = re.compile(r"(!?\[[^\]]*\]\([^)]*\))\{[^}\n]*\}")  # Quarto reads them, GitHub shows them


def from_root(link: str, folder: Path) -> str:
    "A link that is relative to `folder`, relative to the root. Raises `ValueError` if nothing is there."
    if ELSEWHERE.match(link):
        return link
    path, mark, anchor = link.partition("#")
    target = Path(os.path.normpath(folder / path))
    if not target.is_relative_to(ROOT):
        raise ValueError(f"the link {link} leads out of the repository")
    name = target.relative_to(ROOT).as_posix()
    name = SITE_PAGES.get(name, name)
    if not (ROOT / name).exists():
        raise ValueError(f"the link {link} leads to {name}, which does not exist")
    return name + mark + anchor


def for_readme(text: str, folder: Path) -> str:
    "Prose of a page in `folder` for the root: links and pictures lead to the same files; nothing of Quarto's."
    parts = CODE.split(FRONT_MATTER.sub("", text))
    for number in range(0, len(parts), CODE.groups + 1):
        prose = ATTRIBUTES.sub(r"\1", parts[number])
        parts[number] = LINK.sub(lambda found: found[1] + from_root(found[2], folder), prose)
    return "".join(part for number, part in enumerate(parts) if number % (CODE.groups + 1) < 2)


def shown(cell: nbformat.NotebookNode) -> str:
    "What a reader of the README sees of a cell."
    if cell.cell_type == "markdown":
        return cell.source
    if cell.cell_type != "code" or "#| echo: false" not in cell.source:
        return ""
    results = [output.data for output in cell.outputs if "text/markdown" in output.get("data", {})]
    return "\n\n".join(data["text/markdown"] for data in results)


def page_text(
    name: str = "README.md",  # A key of `PAGES`
) -> str:
    "The text of a file in the root."
    notebook = ROOT / PAGES[name]
    cells = nbformat.read(notebook, 4).cells
    parts = [NOTE.format(PAGES[name]), *(for_readme(shown(cell), notebook.parent).strip() for cell in cells)]
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    for name in PAGES:
        (ROOT / name).write_text(page_text(name), encoding="utf-8", newline="\n")
