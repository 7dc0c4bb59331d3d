"What the notebooks show of their own cells must hold for the exported package too."
import ast
import asyncio
import inspect
import os
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
FLAGS = {"slow", "gpu", "network"}


def directives(source: str) -> set[str]:
    "The words of a cell's `#|` lines."
    return {word for line in source.splitlines() if line.startswith("#|") for word in line[2:].replace(":", " ").split()}


def modules() -> dict[str, Path]:
    "Each exported module with its notebook."
    found = {}
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "code" and cell.source.startswith("#| default_exp"):
                found[cell.source.split()[2]] = path
    return found


@pytest.mark.parametrize("name", modules())
def test_demonstrations_hold_for_the_package(name, monkeypatch, request):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(modules()[name].parent)
    module = __import__(f"card_classifier.{name}", fromlist=["*"])
    namespace = dict(vars(module))
    runner = asyncio.Runner()  # one loop for the whole notebook
    request.addfinalizer(runner.close)
    skipped = FLAGS if os.environ.get("CARD_CLASSIFIER_DATA") else FLAGS | {"real"}
    for number, cell in enumerate(nbformat.read(modules()[name], 4).cells):
        words = directives(cell.source)
        if cell.cell_type != "code" or words & (skipped | {"export", "exports", "default_exp", "eval"}) or "nbdev_export()" in cell.source:
            continue
        source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))  # the magics of a notebook mean nothing here
        outcome = eval(compile(source, f"{name}, cell {number}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), namespace)
        if inspect.iscoroutine(outcome): runner.run(outcome)  # a cell with `await`, as notebooks allow
