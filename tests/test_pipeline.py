"The pipeline as a person runs it, in a clone of its own: made, killed, gone on with, and a version of it made again."

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import environment_of_a_clone

from card_classifier.lifecycle.promotion import Decision, promote
from card_classifier.lifecycle.registry import read_registry
from card_classifier.lifecycle.release import TRAINING_CODE
from card_classifier.lifecycle.reproduce import compare, plan_of_run

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(sys.executable).parent
posix = pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a POSIX signal")


def git(folder: Path, *arguments: str) -> str:
    "What git prints."
    name = ("-c", "user.name=A", "-c", "user.email=a@b.c")
    answer = subprocess.run(["git", "-C", str(folder), *name, *arguments], check=True, capture_output=True, text=True)
    return answer.stdout.strip()


def surroundings(clone: Path) -> dict[str, str]:
    "Environment variables with which commands are those of the clone."
    path = os.pathsep.join([str(SCRIPTS), os.environ["PATH"]])
    variables = {"PYTHONPATH": str(clone), "PATH": path, "WANDB_MODE": "offline", "DVC_NO_ANALYTICS": "1"}
    return environment_of_a_clone() | variables


def run(clone: Path, *command: str, code: int = 0) -> str:
    "What a command in the clone says on both streams; it must end with this code."
    answer = subprocess.run(
        [str(SCRIPTS / command[0]), *command[1:]],
        cwd=clone, env=surroundings(clone), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )
    said = answer.stdout + answer.stderr
    assert answer.returncode == code, said
    assert "Traceback" not in said
    return said


def told(clone: Path, *command: str) -> dict:
    "The JSON that a command in the clone prints."
    answer = subprocess.run(
        [str(SCRIPTS / command[0]), *command[1:]],
        cwd=clone, env=surroundings(clone), capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL,
    )
    return json.loads(answer.stdout)


def kill(process: subprocess.Popen) -> None:
    "Ends a process and all its children without warning."
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        member.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    psutil.wait_procs(family, timeout=60)


def kill_when(clone: Path, command: list[str], sign: str) -> None:
    "Starts a command and kills it as soon as a file is there."
    process = subprocess.Popen(
        [str(SCRIPTS / command[0]), *command[1:]],
        cwd=clone, env=surroundings(clone), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )
    while not list(clone.glob(sign)):
        assert process.poll() is None, process.stdout.read().decode()
        time.sleep(0.05)
    kill(process)


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    "A clone of the repository as its files are now, with everything committed, in a folder with a space and an umlaut."
    folder = tmp_path_factory.mktemp("pipeline") / "Prüfung 1"
    files = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "as it is now")
    return folder


@pytest.fixture(scope="module")
def made(clone) -> Path:
    "The clone with the whole pipeline made for the deck; its first training was killed after an epoch."
    kill_when(clone, ["dvc", "repro", "quality@deck"], "outputs/deck-base/checkpoints/*.safetensors")
    assert not (clone / "outputs/deck-base/metrics.json").exists()
    run(clone, "dvc", "repro", "quality@deck")
    return clone


def test_dvc_watches_the_code_that_a_run_depends_on():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    watched = set(stages["train"]["deps"])
    assert watched >= set(TRAINING_CODE)
    for name in TRAINING_CODE:
        assert (ROOT / name).exists(), name


@posix
def test_the_pipeline_goes_on_where_it_was_killed(made):
    record = (made / "outputs/deck-base/train.ipynb").read_text(encoding="utf-8")
    assert "going on after epoch" in record, "what was trained before is kept"
    history = json.loads((made / "outputs/deck-base/metrics.json").read_text(encoding="utf-8"))["history"]
    assert [row["epoch"] for row in history] == list(range(1, len(history) + 1))


@posix
def test_the_bundle_says_how_each_of_its_networks_is_made(made):
    bundle = json.loads((made / "outputs/recipes/deck/measured/bundle.json").read_text(encoding="utf-8"))
    assert {name: network["run"] for name, network in bundle["networks"].items()} == {
        kind: f"deck-{kind}" for kind in ("classifier", "detector", "index_detector", "index_reader")}
    head = git(made, "rev-parse", "HEAD")
    networks = bundle["networks"]
    assert [ancestor["run"] for ancestor in networks["classifier"]["ancestors"]] == ["deck-base"]
    steps = {kind: network["training"] for kind, network in networks.items()}
    for kind, step in (*steps.items(), ("base", networks["classifier"]["ancestors"][0])):
        assert step["code_version"] == {"commit": head, "is_dirty": False}
        assert len(step["lock_sha256"]) == 64
        assert len(step["data"]["checksum"]) == (0 if kind == "index_detector" else 64), "it learns from no images"
        assert step["settings"]["data.deck_train"] == 6
    assert set(bundle["metrics"]["whole_way"]) == {"valid", "test"}
    assert bundle["reference"]["sources"] == {"valid": 12, "composed": 12}
    assert bundle["reference"]["model_version"] == bundle["model_version"]


@posix
def test_made_again_nothing_is_trained_and_the_difference_can_be_seen(made):
    git(made, "add", "dvc.lock")
    git(made, "commit", "--quiet", "--message", "the deck's bundle")
    before = (made / "outputs/deck-detector/metrics.json").stat().st_mtime_ns
    recipe = made / "configs/recipes/deck.yaml"
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text.replace("tracking.wandb=offline", "tracking.wandb=disabled"), encoding="utf-8")
    said = run(made, "dvc", "repro", "quality@deck")
    assert "Stage 'train@deck-classifier' didn't change, skipping" in said
    assert (made / "outputs/deck-detector/metrics.json").stat().st_mtime_ns == before
    recipe.write_text(text.replace("scenes.n_valid=8", "scenes.n_valid=9"), encoding="utf-8")
    run(made, "card-classifier", "recipe", "deck", "--write")
    changed = told(made, "dvc", "params", "diff", "--json")
    assert list(changed) == ["outputs/recipes/deck/detector.yaml"]
    metrics = made / "outputs/recipes/deck/valid/metrics.json"
    figures = json.loads(metrics.read_text(encoding="utf-8"))
    figures["whole_way"]["accuracy"] += 0.5
    metrics.unlink() # A link into DVC's cache, perhaps
    metrics.write_text(json.dumps(figures), encoding="utf-8")
    shown = told(made, "dvc", "metrics", "diff", "--json")
    assert shown["outputs/recipes/deck/valid/metrics.json"]["whole_way.accuracy"]["diff"] == pytest.approx(0.5)
    (plot,) = told(made, "dvc", "plots", "diff", "--json", "HEAD")["data"]["outputs/deck-classifier/history.json"]
    assert plot["revisions"] == ["workspace", "HEAD"]
    assert all("valid_loss" in row for row in plot["content"]["data"]["values"])
    recipe.write_text(text, encoding="utf-8")
    run(made, "dvc", "checkout", "--force", "quality@deck", "evaluate@deck")


@posix
def test_a_version_of_the_registry_is_made_again_with_the_same_numbers(made):
    for setting, value in (("user.name", "A"), ("user.email", "a@b.c")):
        git(made, "config", setting, value)
    promote(made, read_registry(made), made / "outputs/deck-classifier/bundle", Decision("staging", "to be made again"))
    said = run(made, "card-classifier", "reproduce", "v1.0.0", "--yes")
    assert "has exactly the packages of its lock file, and is used" in said or "its lock file names other" in said
    assert "identical: " in said and "on the same machine" in said
    (place,) = made.glob("outputs/reproductions/deck-classifier-*")
    report = json.loads((place / "report.json").read_text(encoding="utf-8"))
    assert report["n_numbers"] > 10 and not report["differences"]
    for name in ("deck-base", "deck-classifier"):
        then, now = (plan_of_run(folder / name).figures for folder in (made / "outputs", place / "runs"))
        assert compare(then, now, True).is_reproduced and compare(then, now, True).n_numbers > 1000
    assert git(made, "worktree", "list").count("\n") == 0


@posix
def test_what_cannot_be_made_again_is_refused_with_advice(made, tmp_path):
    def refusal(folder: Path, name: str = "deck-base", *options: str) -> str:
        return run(folder, "card-classifier", "reproduce", name, *options, code=2)

    assert "begin without asking with --yes" in refusal(made), "nobody can be asked here"
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth", "1", f"file://{made}", str(shallow))
    note = made / "outputs/deck-base/run.json"
    kept = json.loads(note.read_text(encoding="utf-8"))
    for file in ("settings.yaml", "metrics.json", "run.json"):
        (shallow / "outputs/deck-base").mkdir(parents=True, exist_ok=True)
        shutil.copy(made / "outputs/deck-base" / file, shallow / "outputs/deck-base" / file)
    assert "git fetch --unshallow" in refusal(shallow, "deck-base", "--yes")
    shutil.rmtree(shallow / ".git")
    assert "is not a git repository" in refusal(shallow, "deck-base", "--yes")
    dirty = {**kept, "code_version": {**kept["code_version"], "is_dirty": True}, "code_sha256": ""}
    note.write_text(json.dumps(dirty), encoding="utf-8")
    assert "With --nearest" in refusal(made, "deck-base", "--yes")
    note.write_text(json.dumps(kept), encoding="utf-8")
    (shallow / "outputs/deck-base/metrics.json").write_text("{", encoding="utf-8")
    assert "the run deck-base is broken" in refusal(shallow, "deck-base", "--yes")
