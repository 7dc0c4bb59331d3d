"""Fails when a notebook can't be read in small steps; with `--table`, prints what each room looks like.

The rules are those of CONTRIBUTING: a title and one sentence first, imports in cells of their own, exported cells of
at most 40 lines, at most 60 exported lines without a demonstration, pictures that are saved, files under 500 kB,
notebooks numbered in reading order: each after those of its folder whose code it builds on. A page that
has to break one stands in `EXCEPTIONS` with the reason.
"""

import ast
import json
import re
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_CELL, MAX_STRETCH, MAX_BYTES, MAX_COLUMNS = 40, 60, 500_000, 120
EXPORTS = {"export", "exports", "exporti"}
RECORD = "the record of a run as it was executed, which nobody edits afterwards"
EXCEPTIONS: dict[str, dict[str, str]] = {  # Notebook to rule to reason
    "logbook/detector_run.ipynb": {"imports": RECORD},
    "logbook/mean_run.ipynb": {"imports": RECORD},
    "logbook/real_run.ipynb": {"imports": RECORD},
}


@dataclass
class Cell:
    "One cell of a notebook."

    kind: str
    source: str
    formats: set[str] = field(default_factory=set)  # Of its saved outputs, such as image/png

    @cached_property
    def directives(self) -> set[str]:
        "The first words of its `#|` lines."
        return {match[1] for match in re.finditer(r"^#\|\s*([\w-]+)", self.source, re.MULTILINE)}

    @cached_property
    def lines(self) -> list[str]:
        "What it holds beside directives and empty lines."
        return [line for line in self.source.splitlines() if line.strip() and not line.startswith("#|")]

    @cached_property
    def statements(self) -> list[ast.stmt]:
        "Its Python, without the lines that only Jupyter understands."
        text = re.sub(r"^[%!].*", "", self.source, flags=re.MULTILINE)
        text = re.sub(r"^(\s+)[%!].*", r"\1pass", text, flags=re.MULTILINE)
        return ast.parse(text).body if self.kind == "code" else []

    @property
    def n_imports(self) -> int:
        "How many of its statements are imports."
        return sum(isinstance(statement, ast.Import | ast.ImportFrom) for statement in self.statements)

    @property
    def is_exported(self) -> bool:
        "Whether it is code of the package, beside its imports."
        return bool(self.directives & EXPORTS) and self.n_imports < len(self.statements)

    @property
    def is_demonstration(self) -> bool:
        "Whether a reader sees it use what was exported."
        return self.kind == "code" and bool(self.lines) and not self.directives & (EXPORTS | {"default_exp", "hide"})

    @property
    def lacks_picture(self) -> bool:
        "Whether it has an alternative text and no picture, as a figure has without the inline backend."
        return "fig-alt" in self.directives and not any(
            re.match(r"image/|text/html|application/vnd\.jupyter\.widget", one) for one in self.formats
        )

    @property
    def modules(self) -> set[str]:
        "Modules of the package that it imports at once; what a function imports when it is called may come later."
        found = set()
        for statement in self.statements:
            if isinstance(statement, ast.Import):
                found.update(name.name for name in statement.names)
            elif isinstance(statement, ast.ImportFrom) and statement.module:
                found.update({statement.module}, {f"{statement.module}.{name.name}" for name in statement.names})
        return {name for name in found if name.startswith("card_classifier.")}

    @property
    def mixes_imports(self) -> bool:
        "Whether imports stand among other code; nbdev runs such cells when it builds the docs. The closing cell may."
        return 0 < self.n_imports < len(self.statements) and "nbdev_export()" not in self.source


@dataclass
class Notebook:
    "A notebook and what can be counted in it."

    name: str
    n_bytes: int
    cells: list[Cell] = field(default_factory=list)

    @property
    def room(self) -> str:
        "Its folder; the ground is one room."
        return self.name.rpartition("/")[0] or "ground"

    @property
    def longest_cell(self) -> int:
        "Lines of its longest exported cell."
        return max((len(cell.lines) for cell in self.cells if cell.is_exported), default=0)

    @property
    def longest_stretch(self) -> int:
        "Most exported lines that follow each other without a demonstration."
        longest = stretch = 0
        for cell in self.cells:
            if cell.is_demonstration:
                stretch = 0
            elif cell.is_exported:
                stretch += len(cell.lines)
                longest = max(longest, stretch)
        return longest

    @property
    def n_long_lines(self) -> int:
        "Lines of code beyond the right margin."
        return sum(
            len(line) > MAX_COLUMNS for cell in self.cells if cell.kind == "code" for line in cell.source.splitlines()
        )

    def problems(self) -> dict[str, str]:
        "Which rules it breaks, and how."
        first = self.cells[0] if self.cells else Cell("code", "")
        mixed = next((cell.lines[0] for cell in self.cells if cell.mixes_imports), None)
        unseen = next((cell.lines[-1] for cell in self.cells if cell.lacks_picture), None)
        found = {
            "title": None
            if first.kind == "markdown" and re.match(r"# .+\n+> .+", first.source)
            else "the first cell must be a title and a block quote with one sentence",
            "imports": mixed and f"a cell mixes imports and other code: {mixed!r}",
            "picture": unseen and f"no picture was saved of a cell that has an alternative text: {unseen!r}",
            "cell": self.longest_cell > MAX_CELL
            and f"an exported cell has {self.longest_cell} lines, at most {MAX_CELL}",
            "stretch": self.longest_stretch > MAX_STRETCH
            and f"{self.longest_stretch} exported lines without a demonstration, at most {MAX_STRETCH}",
            "size": self.n_bytes >= MAX_BYTES and f"{self.n_bytes / 1000:.0f} kB, must be under {MAX_BYTES / 1000:.0f}",
        }
        return {rule: problem for rule, problem in found.items() if problem}


def read_notebooks(folder: Path) -> list[Notebook]:
    "All notebooks under a folder, in order."
    notebooks = []
    for path in sorted(folder.rglob("*.ipynb")):
        name = path.relative_to(folder).as_posix()
        if ".ipynb_checkpoints" in name:
            continue
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        read = [
            Cell(
                cell["cell_type"],
                "".join(cell["source"]),
                {name for output in cell.get("outputs", []) for name in output.get("data", {})},
            )
            for cell in cells
        ]
        notebooks.append(Notebook(name, path.stat().st_size, read))
    return notebooks


def numbering_problems(names: list[str]) -> list[str]:
    "Folders whose numbered notebooks don't count 00, 01, 02 …"
    numbers: dict[str, list[int]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        if match := re.match(r"(\d\d)_", file):
            numbers.setdefault(folder, []).append(int(match[1]))
    return [
        f"{folder or '.'}: notebooks are numbered {sorted(found)}, expected 0 to {len(found) - 1}, each once"
        for folder, found in numbers.items()
        if sorted(found) != list(range(len(found)))
    ]


def order_problems(notebooks: list[Notebook]) -> list[str]:
    "Numbered notebooks that stand before one of their folder whose code they build on."
    pages = {notebook.name[:-6]: notebook for notebook in notebooks if re.match(r"(.*/)?\d\d_", notebook.name)}
    modules = {re.sub(r"(^|/)\d\d_", r"\1", name).replace("/", "."): name for name in pages}
    return [
        f"{name}.ipynb imports {module}, which comes later: {needed}.ipynb"
        for name, notebook in pages.items()
        for module in sorted({found for cell in notebook.cells if cell.directives & EXPORTS for found in cell.modules})
        if (needed := modules.get(module.removeprefix("card_classifier.")))
        and needed > name
        and needed.rpartition("/")[0] == name.rpartition("/")[0]
    ]


def check(folder: Path, exceptions: dict[str, dict[str, str]]) -> list[str]:
    "What is wrong with the notebooks under a folder, one line each; an exception that is not needed is wrong too."
    notebooks = read_notebooks(folder)
    problems = numbering_problems([notebook.name for notebook in notebooks])
    problems += order_problems(notebooks)
    broken = {notebook.name: notebook.problems() for notebook in notebooks}
    for name, found in broken.items():
        problems += [f"{name}: {problem}" for rule, problem in found.items() if rule not in exceptions.get(name, {})]
    for name, rules in exceptions.items():
        problems += [
            f"{name}: needs no exception for {rule!r} any more" for rule in rules if rule not in broken.get(name, {})
        ]
    return problems


def table(notebooks: list[Notebook]) -> str:
    "What each room looks like, in Markdown."
    lines = [
        "| room | notebooks | cells | exported | demonstrations | longest exported cell | longest stretch without a "
        "demonstration | lines over 120 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for room in dict.fromkeys(notebook.room for notebook in notebooks):
        own = [notebook for notebook in notebooks if notebook.room == room]
        cells = [cell for notebook in own for cell in notebook.cells]
        lines.append(
            f"| {room} | {len(own)} | {len(cells)} | {sum(cell.is_exported for cell in cells)} "
            f"| {sum(cell.is_demonstration for cell in cells)} | {max(notebook.longest_cell for notebook in own)} "
            f"| {max(notebook.longest_stretch for notebook in own)} "
            f"| {sum(notebook.n_long_lines for notebook in own)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    if "--table" in sys.argv[1:]:
        print(table(read_notebooks(ROOT / "nbs")))
        sys.exit()
    wrong = check(ROOT / "nbs", EXCEPTIONS)
    for line in wrong:
        print(line)
    if wrong:
        sys.exit(f"{len(wrong)} problems: split the cell, or show what it does")
    print("every notebook can be read in small steps")
