"""Every notebook runs from top to bottom.

A notebook that is a module runs with what the package exports: at each exported cell, the names that the cell defines
become those of the package. So its demonstrations are tests of the package, count for its coverage, and still fail
where a cell uses a name that only a later cell defines, as they would in Jupyter. That the package is what the
exported cells say is what `make export-check` shows. All other pages run as nbdev runs them.
"""

import ast
import asyncio
import inspect
import os
import sys
from importlib import import_module
from pathlib import Path

import nbformat
import pytest
from nbdev.config import get_config
from nbdev.test import test_nb as run_page

ROOT = Path(__file__).resolve().parent.parent
EXPORTS = {"export", "exports", "exporti"}
FLAGS = {
    flag for flag in get_config().tst_flags.split() if flag != "real" or not os.environ.get("CARD_CLASSIFIER_DATA")
}
FOLDERS = sorted({path.parent for path in (ROOT / "nbs").rglob("*.ipynb")})
NOTEBOOKS = [path for folder in FOLDERS if not (folder / ".notest").exists() for path in sorted(folder.glob("*.ipynb"))]


def directives(source: str) -> set[str]:
    "The words of a cell's `#|` lines."
    return {
        word for line in source.splitlines() if line.startswith("#|") for word in line[2:].replace(":", " ").split()
    }


def code_cells(path: Path) -> list[str]:
    "The code of a notebook."
    return [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def module_name(path: Path) -> str | None:
    "The module that a notebook exports."
    found = [source.split()[2] for source in code_cells(path) if source.startswith("#| default_exp")]
    return found[0] if found else None


def bound_names(source: str) -> set[str]:
    "The names that a cell defines for the cells after it."
    names = set()
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(statement.name)
        else:
            names |= {
                node.id
                for node in ast.walk(statement)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            }
    return names


MODULES = {name: path for path in NOTEBOOKS if (name := module_name(path))}
PAGES = [path for path in NOTEBOOKS if path not in MODULES.values()]


def test_names_of_a_cell():
    assert bound_names("import os.path\nfrom re import sub as s\nA = B = 1\ndef f(): inner = 1\nclass C: part = 2") == {
        "os",
        "s",
        "A",
        "B",
        "f",
        "C",
    }


@pytest.fixture(autouse=True)
def own_environment():
    "Gives each notebook the environment that it would find in a kernel of its own."
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("name", MODULES)
def test_demonstrations_hold_for_the_package(name, monkeypatch, request):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(MODULES[name].parent)
    module = import_module(f"card_classifier.{name}")
    namespace = {"__name__": "__main__"}
    runner = asyncio.Runner()  # one loop for the whole notebook
    request.addfinalizer(runner.close)
    for number, cell in enumerate(code_cells(MODULES[name])):
        words = directives(cell)
        if words & EXPORTS:
            namespace |= {bound: getattr(module, bound) for bound in bound_names(cell) if hasattr(module, bound)}
            continue
        if words & (FLAGS | {"default_exp", "eval"}) or "nbdev_export()" in cell:
            continue
        source = "\n".join(
            line for line in cell.splitlines() if not line.startswith("%")
        )  # the magics of a notebook mean nothing here
        outcome = eval(compile(source, f"{name}, cell {number}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), namespace)
        if inspect.iscoroutine(outcome):  # a cell with `await`, as notebooks allow
            runner.run(outcome)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT / "nbs").as_posix())
def test_pages_run(path, monkeypatch, capfd):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr(sys, "path", [*sys.path])
    is_fine, _ = run_page(path, skip_flags=FLAGS, do_print=True)
    assert is_fine, capfd.readouterr().err
