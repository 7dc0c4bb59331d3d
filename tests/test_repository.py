"The repository keeps what it promises to those who read it."

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from rhythm_check import Cell, Notebook, order_problems

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))


def targets() -> set[str]:
    "The targets of the Makefile."
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def make_words(command: str) -> list[str]:
    "The targets that a `make` line calls."
    return [word for word in command.split()[1:] if "=" not in word]


def test_the_readme_promises_only_commands_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {"run", "test", "train"} <= targets()
    assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= targets()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_the_pages_of_the_root_are_made_from_those_of_the_site(name):
    made = runpy.run_path(str(ROOT / "reports" / "readme.py"))["page_text"](name)
    assert (ROOT / name).read_text(encoding="utf-8") == made, "run make readme"


@pytest.mark.skipif(sys.platform == "win32", reason="the continuous integration that calls it runs on Linux")
@pytest.mark.parametrize("is_shared", [True, False])
def test_ci_runs_make_test_with_the_data_that_lies_beside_the_checkout(tmp_path, is_shared):
    checkout, tools = tmp_path / "checkout", tmp_path / "tools"
    (checkout / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", checkout / ".ci" / "run")
    if is_shared:
        (tmp_path / "shared" / "weights").mkdir(parents=True)
    tools.mkdir()
    for name in (
        "bash",
        "env",
        "dirname",
        "realpath",
        "id",
    ):  # all that it may use; without apt-get it installs nothing
        (tools / name).symlink_to(shutil.which(name))
    (tools / "make").write_text(
        '#!/usr/bin/env bash\necho make "$@" in "$PWD" with "${CARD_CLASSIFIER_WEIGHTS-nothing}"\n', encoding="utf-8"
    )
    (tools / "make").chmod(0o755)
    done = subprocess.run(
        [checkout / ".ci" / "run"], env={"PATH": str(tools)}, capture_output=True, text=True, check=True
    )
    weights = (tmp_path / "shared" / "weights").resolve() if is_shared else "nothing"
    assert done.stdout.strip() == f"make test in {checkout.resolve()} with {weights}"


def dry_run(*arguments: str, **environment: str) -> str:
    "What make would run."
    command = [shutil.which("make"), "-n", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_one_command_measures_every_study():
    said, studies = dry_run("tables"), (ROOT / "nbs" / "studies").glob("*.ipynb")
    missing = [path.name for path in studies if f"nbs/studies/{path.name}" not in said]
    assert not missing and "reports/report.py" in said and "--split test" in said


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_on_windows_make_finds_the_commands_where_a_virtual_environment_has_them_there():
    everywhere = ("setup", "test", "check", "hooks", "lab", "run", "docs", "-W", "settings.ini")
    windows, posix = dry_run(*everywhere, "OS=Windows_NT"), dry_run(*everywhere, "OS=")
    assert ".venv/bin" not in windows
    assert "python -m venv .venv" in windows and "python3.11 -m" not in windows
    for command in (".venv/Scripts/python -m pip install", ".venv/Scripts/uv pip sync", ".venv/Scripts/nbdev_merge"):
        assert command in windows
    assert windows.replace(".venv/Scripts", ".venv/bin").replace("python -m venv", "python3.11 -m venv") == posix, (
        "nothing else differs"
    )


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize("path", [r"C:\Windows;C:\Program Files\Git\bin", "/usr/bin:/bin"])
def test_make_puts_its_commands_first_on_the_path_as_the_system_writes_it(path):
    variables = dry_run("-p", "help", "OS=Windows_NT", PATH=path)
    separator = ";" if ";" in path else ":"
    assert f"PATH := {ROOT}/.venv/Scripts{separator}{path}\n" in variables


def test_commits_are_checked_by_targets_of_the_makefile():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert [make_words(hook["entry"])[0] for hook in hooks if hook["entry"].startswith("make ")] == [
        "ruff",
        "clean-notebooks",
        "export-check",
        "file-checks",
    ]
    assert {make_words(hook["entry"])[0] for hook in hooks} <= targets()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_fit_to_be_read(path):
    notebook = nbformat.read(path, 4)
    assert notebook.cells[0].source.startswith("# ")
    assert "\n> " in notebook.cells[0].source
    assert path.stat().st_size < 500_000
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not [output for output in cell.outputs if output.output_type == "error"]
            assert "/site-packages/" not in str(cell.outputs), (
                "a warning with a path of some machine: silence it, or run the notebook again"
            )


def test_a_notebook_stands_after_those_of_its_folder_that_it_builds_on():
    early = Notebook("room/00_early.ipynb", 1, [Cell("code", "#| export\nfrom card_classifier.room import late")])
    lazy = Notebook("room/01_lazy.ipynb", 1, [Cell("code", "#| export\ndef f():\n import card_classifier.room.late")])
    late = Notebook("room/02_late.ipynb", 1, [Cell("code", "#| export\nfrom card_classifier.room.lazy import f")])
    assert order_problems([early, lazy, late]) == [
        "room/00_early.ipynb imports card_classifier.room.late, which comes later: room/02_late.ipynb"
    ]


def test_a_picture_that_was_not_saved_is_noticed():
    source = "#| fig-alt: A card\nplot()"
    shown, text = (Cell("code", source, {"text/plain", *more}) for more in (["image/png"], []))
    assert "picture" not in Notebook("a.ipynb", 1, [shown]).problems()
    assert Notebook("a.ipynb", 1, [shown, text]).problems()["picture"].endswith("'plot()'")


def test_no_secret_and_no_data_is_tracked():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    assert not [name for name in files if re.search(r"\.(zip|tar|h5|safetensors|pt|pth|pkl|pem|key)$", name)]


def test_setup_reads_every_extra_from_settings():
    code = """import json, runpy, setuptools
setuptools.setup = lambda **known: print(json.dumps({name: sorted(of) for name, of in known["extras_require"].items()}))
runpy.run_path("setup.py")"""
    extras = json.loads(
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    )
    assert extras.keys() == {"serve", "heic", "parquet", "watch", "video", "batch", "cloud", "train", "dev"}
    assert set(extras["train"]) < set(extras["dev"])
