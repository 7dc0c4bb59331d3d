"Training runs as processes: killed, resumed, repeated, and compared with what serves."

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import nbformat
import psutil
import pytest
from conftest import colour_picture
from wandb_server import Run, WandbServer, wandb_server

from card_classifier.configuration import checkout, load_settings
from card_classifier.lifecycle.runs import FINISHED, STOPPED, TRAINING, hold_run, read_run, read_run_file

COMMAND = str(Path(sys.executable).with_name("card-classifier"))
TINY = [
    "--experiment",
    "quick",
    "data.deck_train=6",
    "data.deck_valid=1",
    "data.deck_test=1",
    "data.deck_size=64",
    "train.size=64",
    "evaluation.size=64",
    "train.epochs=4",
    "train.threads=1",
    "tracking.wandb=offline",
]


def runs() -> set[Path]:
    "The runs there are."
    return {file.parent for file in (checkout() / "outputs").glob("*/settings.yaml")}


def start(*arguments: str, **environment: str) -> tuple[subprocess.Popen, Path]:
    "Starts a run and waits until its folder is there; other tests may start theirs at the same time."
    mark = f"tracking.project=p{uuid.uuid4().hex[:8]}"
    process = subprocess.Popen(
        [COMMAND, "train", *arguments, mark],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (new := [run for run in runs() if mark in read_run_file(run).get("overrides", ())]):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    return process, new[0]


def finish(process: subprocess.Popen) -> str:
    "Waits for a run that must succeed."
    output, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    return output


def wait_for_checkpoint(run: Path, process: subprocess.Popen) -> None:
    "Waits until a first epoch is kept."
    while not list((run / "checkpoints").glob("*.safetensors")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)


def end_family(process: subprocess.Popen, how: int) -> None:
    "Ends a process and all its children without warning."
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        member.send_signal(how)
    process.wait(timeout=60)
    psutil.wait_procs(family, timeout=60)


def numbers(run: Path) -> dict:
    "What a run measured, without what a clock or the run's name decides."
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    history = [{name: value for name, value in row.items() if name != "seconds"} for row in metrics["history"]]
    return {
        "history": history,
        "temperature": metrics["temperature"],
        "valid": metrics["valid"],
        "test": metrics["test"],
    }


def listed(name: str) -> dict:
    "What `card-classifier runs` says about a run."
    answer = subprocess.run([COMMAND, "runs", "--json", "-f", name], capture_output=True, text=True, check=True)
    return next(one for one in json.loads(answer.stdout) if one["name"] == name)


def send(run: Path, server: WandbServer, folder: Path) -> Run:
    "Sends an offline run to W&B as a person would; what arrives there."
    found = next(run.glob("wandb/offline-run-*"))
    command = [sys.executable, "-m", "wandb", "sync", str(found)]
    subprocess.run(command, env=os.environ | server.environment(folder), check=True, capture_output=True)
    return server.the_run(run.name)


@pytest.fixture(scope="module")
def wandb() -> Iterator[WandbServer]:
    "A W&B server on loopback."
    with wandb_server() as server:
        yield server


@pytest.fixture(scope="module")
def uninterrupted() -> Path:
    "A small run that was left alone."
    process, run = start(*TINY)
    output = finish(process)
    assert "executed notebook" in output
    return run


def test_a_run_keeps_its_record(uninterrupted):
    for name in (
        "train.ipynb",
        "metrics.json",
        "settings.yaml",
        "bundle/bundle.json",
        "bundle/classifier.onnx",
        "figures/confusion.png",
        "figures/learning-curves.png",
    ):
        assert (uninterrupted / name).is_file(), name
    assert list((uninterrupted / "wandb").glob("offline-run-*")), "without a key, W&B writes to the run's folder"
    assert load_settings(uninterrupted).train.epochs == 4
    valid = numbers(uninterrupted)["valid"]
    info = read_run(uninterrupted)
    assert (info.state, info.figure, info.value) == (FINISHED, "accuracy on valid", valid["accuracy"])
    bundle = json.loads((uninterrupted / "bundle" / "bundle.json").read_text(encoding="utf-8"))
    training = bundle["networks"]["classifier"]["training"]
    assert training["settings"]["train.epochs"] == 4
    assert training["data"]["licence"] == "Apache-2.0", "a rendered deck has the project's; the gate asks for it"
    assert bundle["data"]["kind"] == "deck"


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a POSIX signal")
def test_killed_and_resumed_it_ends_with_the_same_numbers(uninterrupted):
    process, run = start(*TINY)
    wait_for_checkpoint(run, process)
    end_family(process, signal.SIGKILL)
    assert listed(run.name)["state"] == "stopped"
    kept = sorted((run / "checkpoints").glob("*.safetensors"))
    assert not (run / "metrics.json").exists()
    if len(kept) > 1:  # the newest is cut in half too: the one before it is used
        kept[-1].write_bytes(kept[-1].read_bytes()[:1000])
    finish(
        subprocess.Popen(
            [COMMAND, "train", "--resume", run.name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    )
    assert numbers(run) == numbers(uninterrupted)
    assert listed(run.name)["state"] == "finished"


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent as a POSIX signal")
def test_ctrl_c_says_how_to_go_on_and_leaves_no_process_behind():
    process, run = start(*TINY, "train.epochs=500")
    wait_for_checkpoint(run, process)
    assert listed(run.name)["state"] == "training"
    remove = [COMMAND, "runs", "remove", run.name, "--yes"]
    refused = subprocess.run(remove, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "is being trained" in refused.stderr
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"card-classifier train --resume {run.name}" in error
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive


def test_a_run_begun_in_jupyter_is_held_by_its_kernel_until_it_ends():
    "Executes the recipe as far as its first table, and its last cell's end."
    notebook = nbformat.read(checkout() / "nbs" / "recipes" / "train.ipynb", 4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    begin = next(number for number, source in enumerate(cells) if "run = new_run(" in source)
    names: dict = {}
    for source in cells[:begin]:
        if not source.startswith("#|"):
            exec(source, names)
    exec(cells[begin].partition("changed = ")[0], names)
    run = names["run"]
    try:
        assert read_run(run).state == TRAINING
        with pytest.raises(ValueError, match="is being trained by another process"):
            hold_run(run)
        exec("if not run_folder:" + cells[-1].partition("if not run_folder:")[2].partition("Markdown(")[0], names)
        assert read_run(run).state == STOPPED, "its last cell lets go of it"
    finally:
        shutil.rmtree(run, ignore_errors=True)


def test_an_offline_run_is_sent_whole(uninterrupted, wandb, tmp_path):
    sent, history = send(uninterrupted, wandb, tmp_path), numbers(uninterrupted)["history"]
    rows = [row for row in sent.history if "valid_loss" in row]
    assert sent.state == "finished"
    assert [row["accuracy"] for row in rows] == [row["accuracy"] for row in history]
    assert all(row["batch_loss"] > 0 and row["learning_rate"] > 0 for row in rows)
    assert sent.config["train"]["epochs"] == 4 and sent.config["data_version"]["kind"] == "deck"
    assert set(sent.config["code_version"]) == {"commit", "is_dirty"}
    assert sent.summary["objective"] == sent.summary["valid_varied/accuracy"]
    assert sent.summary["predictions"]["nrows"] == 24 and sent.summary["confusion"]["nrows"] > 1
    assert {"figures/confusion", "figures/learning-curves"} <= set(sent.summary)
    assert any(name.startswith("system.") for row in sent.events for name in row), "system use"
    assert any(name.startswith("media/images/") for name in sent.files)
    assert not wandb.unknown


def test_the_mean_of_runs_is_judged_without_training(uninterrupted, wandb, tmp_path):
    "The mean of a network and itself is that network. It is logged like any other run, online here."
    both = f"model.start_from={uninterrupted.name}+{uninterrupted.name}"
    process, run = start(*TINY, "train.epochs=0", both, "tracking.wandb=online", **wandb.environment(tmp_path))
    finish(process)
    online = wandb.the_run(run.name)
    assert online.state == "finished" and online.config["model"]["start_from"].startswith(uninterrupted.name)
    assert {"objective", "valid/accuracy", "predictions", "confusion", "figures/confusion"} <= set(online.summary)
    refused = subprocess.run(
        [COMMAND, "runs", "remove", uninterrupted.name, "--yes"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2 and f"{run.name} went on from it" in refused.stderr
    page = tmp_path / "beide Läufe.html"
    subprocess.run([COMMAND, "runs", "compare", uninterrupted.name, run.name, "--to", str(page)], check=True)
    assert "model.start_from" in page.read_text(encoding="utf-8")
    assert numbers(run) == numbers(uninterrupted) | {"history": []}
    described = json.loads((run / "bundle" / "bundle.json").read_text(encoding="utf-8"))["networks"]["classifier"]
    assert "the mean of the networks" in described["training"]["weights"]
    assert [ancestor["run"] for ancestor in described["ancestors"]] == [uninterrupted.name]
    assert described["ancestors"][0]["settings"]["train.epochs"] == 4
    assert len(list((run / "checkpoints").glob("*.safetensors"))) == 1, "other runs can go on from it"
    shutil.rmtree(run)


def test_serving_answers_as_training_did(uninterrupted, tmp_path):
    "Training evaluates with torch on cached pixels; this goes through the bundle, the predictor and the JPEG bytes."
    result = subprocess.run(
        [COMMAND, "evaluate", uninterrupted.name, "--to", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    served = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["classifier"]
    trained = numbers(uninterrupted)["test"]
    assert served["confusion"] == trained["confusion"]
    assert served["nll"] == pytest.approx(trained["nll"], abs=1e-3)


def test_a_loss_that_is_no_number_ends_the_run_with_the_batch_in_the_message():
    process, run = start(*TINY, "train.learning_rate=1e30", "train.gradient_clip=0")
    _, error = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "the loss is" in error
    assert "train/" in error, "the images of the batch are named"
    assert not (run / "metrics.json").exists()


def test_a_detector_is_trained_put_into_a_bundle_and_used(tiny_bundle, wandb, tmp_path):
    process, run = start(
        "--experiment",
        "quick_detector",
        "scenes.n_train=32",
        "scenes.n_valid=8",
        "train.epochs=1",
        "tracking.wandb=offline",
    )
    try:
        said = finish(process)
        sent = send(run, wandb, tmp_path / "client")
        assert {"objective", "valid/corner_error", "predictions", "confusion", "figures/found"} <= set(sent.summary)
        assert [row["corner_error"] for row in sent.history if "valid_loss" in row]
        assert (
            "corners off on scenes" in said and f"card-classifier export CLASSIFIER_RUN --detector {run.name}" in said
        )
        bundle = tmp_path / "with-detector"
        subprocess.run(
            [COMMAND, "export", str(tiny_bundle), "--detector", run.name, "--threshold", "0.3", "--to", str(bundle)],
            check=True,
            capture_output=True,
        )
        assert {"classifier.onnx", "detector.onnx", "bundle.json"} == {file.name for file in bundle.iterdir()}
        detector = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["networks"]["detector"]
        assert (detector["run"], detector["thresholds"]) == (run.name, {"detection": 0.3})
        assert (
            detector["metrics"]["valid"]["recall"]["n"] > 0 and detector["training"]["settings"]["scenes.n_train"] == 32
        )
        colour_picture(7, size=(300, 200)).save(tmp_path / "photo.png")
        alone = subprocess.run(
            [COMMAND, "predict", str(tmp_path / "photo.png"), "--bundle", run.name],
            check=False,
            capture_output=True,
            text=True,
        )
        assert alone.returncode == 2 and f"card-classifier export CLASSIFIER_RUN --detector {run.name}" in alone.stderr
        answer = subprocess.run(
            [COMMAND, "predict", str(tmp_path / "photo.png"), "--bundle", str(bundle), "--json"],
            check=True,
            capture_output=True,
            text=True,
        )
        assert json.loads(answer.stdout)["cards"]
        refused = subprocess.run(
            [COMMAND, "export", str(tiny_bundle), "--detector", run.name, "--int8", "--to", str(bundle)],
            check=False,
            capture_output=True,
            text=True,
        )
        assert refused.returncode == 2 and "trained on" in refused.stderr
    finally:
        shutil.rmtree(run, ignore_errors=True)


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a POSIX signal")
def test_two_processes_train_together_end_together_and_go_on():
    process, run = start(*TINY, "train.processes=2", "train.epochs=12", "train.precision=fp32")
    wait_for_checkpoint(run, process)
    others = [
        child for child in psutil.Process(process.pid).children(recursive=True)
        if any("take_part" in word for word in child.cmdline())
    ]
    assert len(others) == 1, "one process trains along"
    others[0].kill()
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "process 2 of those that train together was killed by signal 9" in error
    assert f"card-classifier train --resume {run.name}" in error and "Traceback" not in error
    assert (run / "process-1.log").is_file()
    assert 1 <= len(json.loads((run / "history.json").read_text(encoding="utf-8"))["rows"]) < 12

    finish(
        subprocess.Popen(
            [COMMAND, "train", "--resume", run.name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    )
    found = numbers(run)
    assert [row["epoch"] for row in found["history"]] == list(range(1, 13)), "the epochs before are kept"
    last = found["history"][-1]["accuracy"]
    assert last == pytest.approx(found["valid"]["accuracy"], abs=1e-6), "validated in parts as by one process"
    assert not (run / "process-1.log").exists(), "its log is kept only when something went wrong"
    shutil.rmtree(run)
