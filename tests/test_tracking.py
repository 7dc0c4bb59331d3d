"W&B that refuses, is overloaded or breaks: the run goes on, and its log can be sent later. Unmodified client."

import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from wandb_server import wandb_server

from card_classifier.settings import Settings, TrackingSettings

tracking = pytest.importorskip("card_classifier.training.tracking", reason="needs the training stack")


@pytest.fixture(scope="module")
def server():
    "A W&B server on loopback."
    with wandb_server() as running:
        yield running


@pytest.fixture
def run(server, tmp_path, monkeypatch):
    "Folder of a run, in a process that finds the server."
    import wandb

    for name, value in server.environment(tmp_path / "client").items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "ein Lauf mit Ümlaut"
    (folder / "figures").mkdir(parents=True)
    yield folder
    wandb.teardown()


def settings(wait_seconds: float = 20) -> Settings:
    "Of a run that is meant to be logged online."
    return Settings(tracking=TrackingSettings(wandb="online", wait_seconds=wait_seconds))


def log(track: "tracking.Tracking", folder) -> str:
    "Logs three steps and results; what came of it, in words."
    for step in range(3):
        track.attempt(lambda step=step: track.run.log({"batch_loss": 3.0 - step}, step=step, commit=True))
    task = SimpleNamespace(objective=("valid", "accuracy"), confusion=lambda metrics: [("a", "b", 2)])
    row = {"image": np.zeros((4, 4, 3), np.uint8), "what": "1.jpg", "truth": "a", "answer": "b"}
    row |= {"probability": 0.4, "is_right": False}
    track.log_results(task, {"valid": {"accuracy": 0.75}}, [row], folder / "figures")
    return track.finish()


def sync(folder) -> subprocess.CompletedProcess:
    "Sends a log as a person would."
    found = [*folder.glob("wandb/offline-run-*"), *folder.glob("wandb/run-*")][0]
    command = [sys.executable, "-m", "wandb", "sync", "--no-skip-online", str(found)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


@pytest.mark.parametrize("status", [401, 429, 500])
def test_where_wandb_refuses_the_run_is_logged_offline_and_sent_later(server, run, status):
    with server.broken(status):
        track = tracking.start_tracking(settings(wait_seconds=3), run, data_version={"checksum": "1a2b"})
        assert str(status) in track.problem and "online" in track.problem
        assert "wandb sync" in log(track, run)
    assert not [one for one in server.runs.values() if one.fields.get("displayName") == run.name]
    sync(run)
    sent = server.the_run(tracking.wandb_id(run.name))
    assert sent.state == "finished" and sent.summary["objective"] == 0.75
    assert [row["batch_loss"] for row in sent.history if "batch_loss" in row] == [3.0, 2.0, 1.0]
    assert sent.config["data_version"] == {"checksum": "1a2b"}
    server.runs.clear()


def test_what_fails_on_the_way_ends_no_run_and_is_sent_again(server, run):
    track = tracking.start_tracking(settings(), run)
    assert not track.problem and track.where.startswith("W&B: http://127.0.0.1")
    with server.broken(401):
        told = log(track, run)
    assert track.problem and "wandb sync --no-skip-online" in told
    sync(run)
    assert server.the_run().summary["objective"] == 0.75
    server.runs.clear()


def test_a_key_of_another_length_and_a_folder_that_is_gone(server, run, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "too short")
    track = tracking.start_tracking(settings(wait_seconds=3), run)
    assert "online" in track.problem and track.run is not None
    shutil.rmtree(run / "figures")  # results can't be logged whole
    assert "wandb sync" in log(track, run)
