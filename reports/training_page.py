"""Puts the newest run into the docs: `make training-page`, after `make run`.

The training recipe is a page of the site. In the repository it is saved as it is before a run; where the site is built,
the page is the run that this very commit makes: papermill's executed notebook, cleaned, with its plots and tables.
"""

import sys
from pathlib import Path

import nbformat
from nbdev.clean import clean_nb

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "nbs" / "recipes" / "train.ipynb"


def executed_page(run: Path, recipe: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "The recipe with the results of a run. Raises `ValueError` if the run executed another recipe."
    cells = nbformat.read(run / "train.ipynb", 4).cells
    executed = {cell.source: cell for cell in cells if cell.cell_type == "code"}
    for cell in recipe.cells:
        if cell.cell_type != "code" or "parameters" in cell.metadata.get("tags", []):
            continue
        if cell.source not in executed:
            raise ValueError(f"the run {run.name} executed another recipe: make run")
        cell.outputs = executed[cell.source].outputs
    clean_nb(recipe)
    return recipe


if __name__ == "__main__":
    finished = sorted((ROOT / "outputs").glob("*/metrics.json"), key=lambda file: file.stat().st_mtime)
    if not finished:
        sys.exit("error: no finished run under outputs/: make run")
    run = finished[-1].parent
    try:
        nbformat.write(executed_page(run, nbformat.read(RECIPE, 4)), RECIPE)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"the training page shows the run {run.name}")
