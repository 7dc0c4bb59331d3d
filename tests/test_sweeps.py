"A sweep with real processes: two workers on one storage, one of them killed; and as W&B's own agent works on it."

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
from wandb_server import wandb_server

from card_classifier.configuration import checkout

COMMAND = str(Path(sys.executable).with_name("card-classifier"))
SPACE = """
experiment: quick
fixed: [data.deck_train=2, data.deck_valid=1, data.deck_test=1, data.deck_size=64, train.size=64, evaluation.size=64,
    train.epochs=2, train.threads=1, tracking.wandb=disabled]
metric: accuracy
trials: 2
startup_trials: 1
heartbeat_seconds: 1
space:
  train.learning_rate:
  train.label_smoothing:
"""


def sweep(*arguments: str) -> subprocess.Popen:
    "Starts `card-classifier sweep`."
    return subprocess.Popen(
        [COMMAND, "sweep", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def space():
    "A small search, removed afterwards with its study."
    name = f"test-{os.getpid()}"
    file, folder = checkout() / "configs" / "sweep" / f"{name}.yaml", checkout() / "outputs" / "sweeps" / name
    file.write_text(SPACE, encoding="utf-8")
    yield name, folder
    file.unlink()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a POSIX signal")
def test_a_worker_that_is_killed_loses_its_own_trial_only(space, tmp_path):
    name, folder = space
    first, second = sweep(name), None
    while not list(folder.glob("trial-*.log")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.1)
    second = sweep(name)
    family = [*psutil.Process(first.pid).children(recursive=True), psutil.Process(first.pid)]
    os.kill(first.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, "the training of a killed worker ends with it"
    _, error = second.communicate(timeout=600)
    assert second.returncode == 0, error

    exported = tmp_path / "trials.json"
    subprocess.run([COMMAND, "sweep", name, "--export", str(exported)], check=True, capture_output=True)
    trials = json.loads(exported.read_text(encoding="utf-8"))["trials"]
    states = [trial["state"] for trial in trials]
    assert states[0] == "failed" and states.count("failed") == 1
    assert sum(trial["retry_of"] == 0 for trial in trials) == 1, "it was tried again"
    assert states.count("complete") + states.count("pruned") == 2
    complete = next(trial for trial in trials if trial["state"] == "complete")
    history = json.loads((checkout() / "outputs" / complete["run"] / "history.json").read_text(encoding="utf-8"))
    assert complete["values"] == [row["accuracy"] for row in history["rows"]]

    file = checkout() / "configs" / "sweep" / f"{name}.yaml"
    file.write_text(SPACE.replace("train.label_smoothing", "train.weight_decay"), encoding="utf-8")
    refused = subprocess.run([COMMAND, "sweep", name], capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "belongs to another sweep" in refused.stderr


def test_an_unmodified_agent_of_wandb_runs_a_trial_and_finds_the_objective_in_its_log(space, tmp_path):
    name, _ = space
    generated = tmp_path / "sweep.yaml"
    subprocess.run([COMMAND, "sweep", name, "--wandb-file", str(generated)], check=True, capture_output=True)
    with wandb_server() as server:
        known = {key: value for key, value in os.environ.items() if key not in ("WANDB_MODE", "WANDB_SILENT")}
        known |= server.environment(tmp_path / "w") | {"PATH": f"{Path(COMMAND).parent}{os.pathsep}{known['PATH']}"}

        def wandb(*arguments: str) -> None:
            command = [sys.executable, "-m", "wandb", *arguments]
            done = subprocess.run(command, env=known, cwd=checkout(), capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr

        wandb("sweep", str(generated))
        (made,) = server.sweeps.values()
        assert made.config == yaml.safe_load(generated.read_text(encoding="utf-8")), "taken as it was written"
        wandb("agent", "--count", "1", f"{made.entity}/{made.project}/{made.identity}")
        (run,) = server.runs.values()
    assert (run.fields["sweep"], run.state, server.unknown) == (made.identity, "finished", [])
    logged = [row[made.config["metric"]["name"]] for row in run.history if made.config["metric"]["name"] in row]
    assert len(logged) == 2 and all(0 <= value <= 1 for value in logged), "after each epoch"
    folder = checkout() / "outputs" / run.fields["displayName"]
    trained = yaml.safe_load((folder / "settings.yaml").read_text(encoding="utf-8"))["train"]
    low, high = (made.config["parameters"]["train.learning_rate"][end] for end in ("min", "max"))
    assert low <= trained["learning_rate"] <= high and trained["epochs"] == 2
    shutil.rmtree(folder)
