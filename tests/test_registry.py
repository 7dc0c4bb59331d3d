"The registry as a team meets it: real git, GTO and DVC, several clones, a remote, and a service that follows."

import contextlib
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import filelock
import gto.api
import httpx
import pytest
from conftest import colour_network, environment_of_a_clone
from test_api import COMMAND, encoded, events, serving, wait_for
from wandb_server import REGISTRY_ENTITY, wandb_server

from card_classifier.bundle import BUNDLE_FILE, read_bundle, released_bundle, write_bundle
from card_classifier.lifecycle.following import take_stage
from card_classifier.lifecycle.gate import judge
from card_classifier.lifecycle.promotion import Decision, TakenError, promote, rollback, share
from card_classifier.lifecycle.registry import RegistryError, read_registry, run_git
from card_classifier.lifecycle.runs import RUN_LOCK
from card_classifier.lifecycle.storage import bundle_digest, version_folder
from card_classifier.lifecycle.wandb_registry import tell_wandb
from card_classifier.configuration import save_settings
from card_classifier.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(sys.executable).parent
CHECKED_OUT = ("configs", "card_classifier", ".gitignore", ".dvcignore", "nbs/recipes/train.ipynb")


def command(root, *arguments, **environment):
    "Runs `card-classifier` of a checkout in that checkout."
    known = environment_of_a_clone()
    known |= {"PYTHONPATH": str(root), "WANDB_MODE": "disabled", "CARD_CLASSIFIER_NOCARDS": ""}
    known |= environment
    return subprocess.run(
        [COMMAND, *map(str, arguments)], cwd=root, env=known, capture_output=True, text=True, check=False
    )


def one_line(done):
    "The answer of a command that could not do what was asked."
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done
    return done.stderr


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    "A repository like this one, with a DVC remote, as others clone it."
    place = tmp_path_factory.mktemp("Vorräte von Müller")
    root = place / "first"
    for name in CHECKED_OUT:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, root / name)
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").write_text(
        f"[core]\n    analytics = false\n    remote = shelf\n['remote \"shelf\"']\n    url = {place / 'shelf'}\n"
    )
    (root / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    run_git(root, "init", "--quiet", "--initial-branch=main")
    run_git(root, "config", "user.name", "Ada Löwe")
    run_git(root, "config", "user.email", "ada@example.org")
    run_git(root, "add", ".")
    run_git(root, "commit", "--quiet", "--message", "First")
    compiling = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "card_classifier"]
    subprocess.run(compiling, cwd=root, check=True)
    return root


def clone(origin, folder, *options, is_shared=True):
    "A clone of a bare copy of the repository, which is its remote `origin`; the bare copy is made once a folder."
    folder.mkdir(parents=True, exist_ok=True)
    bare = folder / "origin.git"
    if not bare.exists():
        run_git(origin, "clone", "--quiet", "--bare", str(origin), str(bare))
        shutil.rmtree(origin.parent / "shelf", ignore_errors=True)
    names = [f"Klon {number}" for number in range(9) if not (folder / f"Klon {number}").exists()]
    run_git(origin, "clone", "--quiet", *options, bare.as_uri(), str(folder / names[0]))
    for name, value in (("user.name", names[0]), ("user.email", "team@example.org")):
        run_git(folder / names[0], "config", name, value)
    for compiled in origin.rglob("__pycache__"):  # Else each clone would compile the package anew
        shutil.copytree(compiled, folder / names[0] / compiled.relative_to(origin))
    if not is_shared:
        run_git(folder / names[0], "remote", "remove", "origin")
    return folder / names[0]


@pytest.fixture
def bundles(tiny_info, tmp_path):
    "Three small bundles, each with its own model version."
    made = []
    for number in (1, 2, 3):
        info = dataclasses.replace(tiny_info, name=f"colours {number}", model_version=f"colours-{number}")
        made.append(write_bundle(tmp_path / "bundles" / str(number), info, {"classifier": colour_network()}))
    return made


def put(root, bundle, stage="production", why="better"):
    "Promotes a bundle without asking the gate."
    return promote(root, read_registry(root), bundle, Decision(stage, why))


def test_gto_and_dvc_read_what_was_promoted(origin, bundles, tmp_path):
    root = clone(origin, tmp_path)
    run_git(root, "checkout", "--quiet", "--detach")
    (root / "configs" / "notes.txt").write_text("unfinished")
    run_git(root, "add", "configs/notes.txt")
    (root / ".gitignore").write_text("outputs/\n# changed\n")
    before = run_git(root, "status", "--porcelain=v2", "--branch")
    put(root, bundles[0], "staging")
    put(root, bundles[0])
    put(root, bundles[1])
    rollback(root, why="confuses jacks")
    assert run_git(root, "status", "--porcelain=v2", "--branch") == before, "branch, index and tree are as they were"
    assert share(root).problem == ""

    other = clone(origin, tmp_path)
    show = [SCRIPTS / "gto", "show", "--repo", other, "--json"]
    shown = json.loads(subprocess.run(show, capture_output=True, text=True, check=True).stdout)["card-classifier"]
    assert shown["version"] == "v1.1.0" and shown["stage"] == {"staging": "v1.0.0", "production": "v1.0.0"}
    assert gto.api.describe(str(other), "card-classifier#production").path == "models/card-classifier"

    dvc = [SCRIPTS / "dvc"]
    options = ["--rev", "card-classifier@v1.1.0", "--out", tmp_path / "got"]
    subprocess.run([*dvc, "get", "--quiet", other, "models/card-classifier", *options], check=True)
    assert bundle_digest(tmp_path / "got") == bundle_digest(bundles[1])
    run_git(other, "checkout", "--quiet", "card-classifier@v1.0.0")
    subprocess.run([*dvc, "pull", "--quiet", "models/card-classifier.dvc"], cwd=other, check=True)
    assert bundle_digest(other / "models" / "card-classifier") == bundle_digest(bundles[0])
    assert run_git(other, "status", "--porcelain") == "", "a pulled bundle is no change of the tree"


def test_a_service_follows_promotion_and_rollback_without_losing_a_request(origin, bundles, tmp_path):
    root, other = clone(origin, tmp_path), clone(origin, tmp_path)
    put(root, bundles[0])
    share(root)
    statuses, versions, stopping = [], [], threading.Event()

    def keep_asking(address):
        with httpx.Client(timeout=60) as client:
            while not stopping.is_set():
                answer = client.post(address + "/v1/predict", content=encoded(7))
                statuses.append(answer.status_code)
                versions.append(answer.json().get("model_version"))
                time.sleep(0.02)  # The workers shall have time to load what is new

    options = ("--no-demo", "--watch-seconds", "0.2", "--registry-seconds", "1")
    with serving(
        tmp_path / "service", "registry:production", *options, environment={"PYTHONPATH": str(root)}, workers=2
    ) as (address, _, folder):
        threads = [threading.Thread(target=keep_asking, args=(address,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            wait_for(lambda: "colours-1" in versions)
            put(root, bundles[1])
            wait_for(lambda: set(versions[-20:]) == {"colours-2"})
            rollback(root)
            wait_for(lambda: set(versions[-20:]) == {"colours-1"})
            share(root)
            share(other)
            put(other, bundles[2])
            assert share(other).problem == "", "the service hears of it by git fetch only"
            wait_for(lambda: set(versions[-20:]) == {"colours-3"})
        finally:
            stopping.set()
            for thread in threads:
                thread.join()
        said = [event["what"] for event in events(folder) if event["event"] == "registry"]
    assert set(statuses) == {200}, f"lost {sum(status != 200 for status in statuses)} of {len(statuses)}"
    assert said[-1] == "production is v1.2.0 now, v1.0.0 before"


RACER = """
import sys, time
from pathlib import Path
from card_classifier.lifecycle.promotion import Decision, TakenError, promote
from card_classifier.lifecycle.registry import read_registry
root, bundle, go = map(Path, sys.argv[1:])
registry = read_registry(root)
print("ready", flush=True)
while not go.exists():
    time.sleep(0.001)
try:
    print("won", promote(root, registry, bundle, Decision("production", bundle.name)).version)
except TakenError as error:
    print("told", error)
"""


def test_of_two_promotions_at_once_one_wins_and_the_other_is_told(origin, bundles, tmp_path):
    root = clone(origin, tmp_path)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, root, bundle, tmp_path / "go"],
            stdout=subprocess.PIPE, text=True, env=environment_of_a_clone() | {"PYTHONPATH": str(root)},
        )
        for bundle in bundles
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()
    outcomes = [racer.communicate(timeout=120)[0].strip() for racer in racers]
    assert sorted(words.split()[0] for words in outcomes) == ["told", "told", "won"], outcomes
    assert all("somebody else promoted first" in words for words in outcomes if words.startswith("told"))
    (winner,) = [bundle for bundle, words in zip(bundles, outcomes, strict=True) if words.startswith("won")]
    registry = read_registry(root)
    assert list(registry.versions) == ["v1.0.0"] and registry.in_stage("production").tag.why == winner.name
    assert bundle_digest(take_stage(root, "production")[0]) == bundle_digest(winner)


def test_of_two_clones_one_wins_at_the_remote_and_the_other_is_told(origin, bundles, tmp_path):
    first, second = clone(origin, tmp_path), clone(origin, tmp_path)
    put(first, bundles[0])
    put(second, bundles[1])
    assert share(first).problem == ""
    done = command(second, "models", "sync")
    assert "somebody else promoted first at origin" in one_line(done)
    assert read_registry(second) == read_registry(first), "nothing of the loser's is left in its registry"
    assert bundle_digest(second / "outputs" / "registry" / "production") == bundle_digest(bundles[0])
    aside = run_git(second, "for-each-ref", "--format=%(refname)", "refs/registry-aside")
    assert "card-classifier@v1.0.0" in aside, "and nothing is lost"
    put(second, bundles[1])
    assert share(second).problem == "" and share(first).problem == ""
    assert read_registry(first).in_stage("production").name == "v1.1.0"


def test_the_gate_is_asked_and_can_be_overruled_with_a_reason(origin, bundles, tmp_path):
    root = clone(origin, tmp_path, is_shared=False)
    detector = tmp_path / "detector"
    info = read_bundle(released_bundle())
    networks = {"detector": info.networks["detector"]}
    write_bundle(
        detector, dataclasses.replace(info, networks=networks), {"detector": released_bundle() / "detector.onnx"}
    )
    refused = command(root, "promote", detector, "--stage", "production")
    assert refused.returncode == 1 and "the gate refuses" in refused.stderr and "Traceback" not in refused.stderr
    assert "fail  networks" in refused.stdout and read_registry(root).moves == []
    assert "needs a reason" in one_line(command(root, "promote", bundles[0], "--stage", "production", "--force"))
    forced = command(root, "promote", detector, "--stage", "production", "--force", "--reason", "try")
    assert "the gate refuses it" in forced.stdout and "is overruled" in forced.stdout, forced
    assert forced.returncode == 2 and "has no classifier" in forced.stderr, "what can't serve is promoted by no force"
    report = judge(bundles[0], released_bundle())
    assert not report.passed
    promote(root, read_registry(root), bundles[0], Decision("production", "only colours", report.to_dict(), True))
    (move,) = read_registry(root).moves
    assert move.tag.why == "only colours" and move.tag.record["forced"] and not move.tag.record["gate"]["passed"]
    found = json.loads(command(root, "models", "--json").stdout)
    assert found["stages"] == {"staging": None, "production": "v1.0.0"}
    assert found["moves"][0]["who"] == "Klon 0 <team@example.org>"
    assert "overruled" in command(root, "models").stdout


ROLLBACK = """
import sys
from card_classifier.cli.main import app
try:
    app(["rollback"])
finally:
    print(*sorted({name.split(".")[0] for name in sys.modules} & {"dvc", "torch", "wandb", "openvino", "gto"}))
"""


def test_a_rollback_needs_git_and_the_local_copy_only(origin, bundles, tmp_path):
    root = clone(origin, tmp_path, is_shared=False)
    put(root, bundles[0])
    put(root, bundles[1])
    shutil.rmtree(root / ".dvc" / "cache")
    done = subprocess.run(
        [sys.executable, "-c", ROLLBACK], env=environment_of_a_clone() | {"PYTHONPATH": str(root)}, cwd=tmp_path,
        capture_output=True, text=True, check=True,
    )
    said = done.stdout.splitlines()
    assert said[0].startswith("v1.0.0 is in production again, v1.1.0 is out") and said[-1] == "", done.stdout
    assert command(root, "rollback").returncode == 0, "and back to the bundle of the package"
    assert "nothing is promoted" in one_line(command(root, "rollback"))
    production = root / "outputs" / "registry" / "production"
    assert bundle_digest(production) == bundle_digest(root / "card_classifier" / "released")


def test_a_bundle_that_was_changed_or_is_missing_is_not_used(origin, bundles, tmp_path):
    root = clone(origin, tmp_path, is_shared=False)
    put(root, bundles[0])
    put(root, bundles[1])
    version = read_registry(root).versions["v1.1.0"]
    copy = version_folder(root, version)
    network = copy / "classifier.onnx"
    network.write_bytes(network.read_bytes()[:-1] + b"?")
    assert bundle_digest(version_folder(root, version)) == bundle_digest(bundles[1]), "it comes anew from the cache"
    for file in (root / ".dvc" / "cache").rglob("*"):
        if file.is_file() and b'"colours 2"' in file.read_bytes():
            file.chmod(0o644)
            file.write_bytes(file.read_bytes().replace(b'"colours 2"', b'"colours x"'))
    shutil.rmtree(copy)
    with pytest.raises(RegistryError, match=r"v1.1.0 is (missing or damaged|not the one that was promoted)"):
        version_folder(root, version)
    assert "v1.1.0" in one_line(command(root, "predict", "--bundle", "registry:production", "photo.jpg"))
    shutil.rmtree(root / "outputs")
    shutil.rmtree(root / ".dvc" / "cache")
    assert "is missing or damaged" in one_line(command(root, "rollback"))
    assert read_registry(root).in_stage("production").name == "v1.1.0", "nothing was changed"


def test_a_tag_by_hand_that_names_no_bundle_leaves_production_as_it_is(origin, bundles, tmp_path):
    root = clone(origin, tmp_path, is_shared=False)
    put(root, bundles[0])
    gto.api.register(str(root), "card-classifier", "HEAD", version="v2.0.0")
    gto.api.assign(str(root), "card-classifier", "production", version="v2.0.0")
    shown = command(root, "models")
    assert shown.returncode == 0 and "v2.0.0" in shown.stdout
    assert "v2.0.0 names no bundle" in one_line(command(root, "serve", "--bundle", "registry:production"))
    assert "v2.0.0 names no bundle" in one_line(command(root, "promote", bundles[1], "--stage", "production"))
    back = command(root, "rollback")
    assert back.returncode == 0 and "v1.0.0 is in production again" in back.stdout


def test_without_a_remote_that_answers_everything_works_here_and_is_shared_later(origin, bundles, tmp_path):
    root = clone(origin, tmp_path, "--depth", "1")
    address = run_git(root, "remote", "get-url", "origin").strip()
    run_git(root, "remote", "set-url", "origin", "https://127.0.0.1:1/nowhere.git")
    put(root, bundles[0], "staging")
    assert "origin could not be reached" in share(root).problem
    run_git(root, "remote", "set-url", "origin", address)
    settings = root / ".dvc" / "config"
    known = settings.read_text()
    settings.write_text(known.replace(str(origin.parent / "shelf"), "/proc/nowhere"))
    done = command(root, "models", "sync")
    assert done.returncode == 0 and "not shared yet: " in done.stdout, "no tag without its bundle, and no traceback"
    assert run_git(root, "ls-remote", "--tags", "origin") == ""
    settings.write_text(known)
    done = command(root, "models", "sync")
    assert "shared with origin: card-classifier#staging#1, card-classifier@v1.0.0" in done.stdout, done
    other = clone(origin, tmp_path)
    assert bundle_digest(take_stage(other, "staging")[0]) == bundle_digest(bundles[0])


def test_what_w_and_b_answers_never_loses_a_promotion(origin, bundles, tmp_path, monkeypatch):
    root = clone(origin, tmp_path, is_shared=False)
    put(root, bundles[0], "staging")
    with wandb_server() as server:
        for name, value in server.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        for status in (401, 429, 500):
            with server.broken(status):
                said = tell_wandb(root, "model", "cards")
            assert said.startswith("not at W&B yet: ") and "card-classifier models sync" in said, said
        assert read_registry(root).in_stage("staging").name == "v1.0.0"
        said = tell_wandb(root, "model", "cards")
        assert said == "at W&B, wandb-registry-model/card-classifier: v1.0.0, v1.0.0 in staging"
        put(root, bundles[1], "staging")
        collection = server.collections[REGISTRY_ENTITY, "wandb-registry-model", "card-classifier"]
        collection.protected.add("staging")
        said = tell_wandb(root, "model", "cards")
        assert "not at W&B yet" in said and "protected" in said
        assert {"v1.0.0", "v1.1.0"} <= collection.aliases.keys(), "the version is there; its stage waits for an admin"
        collection.protected.clear()
        done = command(root, "models", "sync", WANDB_MODE="online")
        assert ": v1.1.0 in staging\n" in done.stdout, done
        got = command(root, "models", "get", "staging", "--from-wandb", "--to", tmp_path / "got", WANDB_MODE="online")
        assert got.returncode == 0 and bundle_digest(tmp_path / "got") == bundle_digest(bundles[1]), got
        assert server.unknown == []


def test_without_git_or_a_commit_the_message_says_what_to_do(origin, tmp_path):
    root = tmp_path / "unpacked"
    shutil.copytree(origin, root, ignore=shutil.ignore_patterns(".git", "outputs"))
    environment = {"GIT_CEILING_DIRECTORIES": str(tmp_path)}
    for arguments in (["rollback"], ["promote", "latest", "--stage", "staging"]):
        assert "is not a git repository: git clone" in one_line(command(root, *arguments, **environment))
    tools = tmp_path / "tools"
    tools.mkdir()
    assert "git is not installed" in one_line(command(root, "models", PATH=str(tools)))
    run_git(root, "init", "--quiet")
    assert "no commit yet" in one_line(command(root, "models"))
    root = clone(origin, tmp_path, is_shared=False)
    (root / "outputs" / "20261125-120000-quick-training").mkdir(parents=True)
    (root / "outputs" / "20261125-120000-quick-training" / "settings.yaml").touch()
    for arguments, words in (
        (["promote", "quick-training", "--stage", "staging"], "has no bundle yet"),
        (["promote", "yesterday", "--stage", "staging"], "no run 'yesterday'"),
        (["promote", "registry:staging", "--stage", "production"], "nothing is in staging yet"),
        (["predict", "--bundle", "registry:v7", "photo.jpg"], "has no 'v7'"),
    ):
        assert words in one_line(command(root, *arguments))


@pytest.mark.skipif(sys.platform == "win32", reason="a lock there is of another kind")
def test_a_run_that_is_still_training_is_not_promoted(origin, bundles, tmp_path):
    root = clone(origin, tmp_path, is_shared=False)
    run = root / "outputs" / "20261125-120000-quick-training"
    shutil.copytree(bundles[0], run / "bundle")
    save_settings(run, Settings())
    with filelock.FileLock(run / RUN_LOCK):  # As the process that trains holds it
        said = one_line(command(root, "promote", "quick-training", "--stage", "staging"))
    assert "is still training" in said and read_registry(root).moves == []


def test_a_promotion_that_is_killed_leaves_the_registry_whole(origin, bundles, tmp_path):
    root = clone(origin, tmp_path, is_shared=False)
    put(root, bundles[0])
    (tmp_path / "go").touch()
    cache = root / ".dvc" / "cache"
    for seconds in (0.0, 0.04, 0.08):
        racer = subprocess.Popen(
            [sys.executable, "-c", RACER, root, bundles[1], tmp_path / "go"],
            stdout=subprocess.PIPE, env=environment_of_a_clone() | {"PYTHONPATH": str(root)},
        )
        with contextlib.closing(racer.stdout):
            wait_for(lambda process=racer: len(list(cache.rglob("*.dir"))) == 2 or process.poll() is not None)
            time.sleep(seconds)
            racer.send_signal(signal.SIGKILL)
            racer.wait()
        registry = read_registry(root)
        current = registry.in_stage("production").name
        assert list(registry.versions)[-1] == current, "both tags or none"
        assert (root / "outputs" / "registry" / "production" / BUNDLE_FILE).is_file()
        if current == "v1.1.0":
            break
    else:
        put(root, bundles[1])
    folder, name = take_stage(root, "production")
    assert name == "v1.1.0" and read_bundle(folder).model_version == "colours-2"
    with pytest.raises(RegistryError, match="already"):
        put(root, bundles[1])
    with pytest.raises(TakenError, match="somebody else promoted first"):
        promote(root, dataclasses.replace(read_registry(root), versions={}, moves=[]), bundles[2], Decision("staging"))
