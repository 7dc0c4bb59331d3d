"Makes README.md from nbs/index.ipynb: its prose, and the results of the cells whose code the docs hide."
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Made from nbs/index.ipynb by `make readme`: edit that. -->"


def shown(cell: nbformat.NotebookNode) -> str:
    "What a reader of the README sees of a cell."
    if cell.cell_type == "markdown":
        return cell.source
    if "#| echo: false" not in cell.source:
        return ""
    return "\n\n".join(output.data["text/markdown"] for output in cell.outputs if "text/markdown" in output.get("data", {}))


def readme(notebook: Path = ROOT / "nbs" / "index.ipynb") -> str:
    "The text of the README."
    parts = [NOTE, *(shown(cell) for cell in nbformat.read(notebook, 4).cells)]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(readme(), encoding="utf-8", newline="\n")
