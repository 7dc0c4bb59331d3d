"The command line as people and scripts use it: real processes, real files, real exit codes."

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import colour_picture

from card_classifier.configuration import checkout, compose
from card_classifier.settings import ServeSettings, group_rows, setting_rows

COMMAND = [str(Path(sys.executable).with_name("card-classifier"))]
KEYS = {
    "file",
    "card",
    "probability",
    "top",
    "is_rejected",
    "rejection_reason",
    "model_version",
    "milliseconds",
    "error",
}
HEAVY = {
    "torch",
    "fastai",
    "timm",
    "gradio",
    "wandb",
    "pandas",
    "matplotlib",
    "openvino",
    "onnxruntime",
    "hydra",
    "papermill",
}


def run(*arguments, folder=None, stdin=b""):
    "Runs the command line in `folder` and waits for it."
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=folder, input=stdin, capture_output=True, timeout=300, check=False
    )


@pytest.fixture
def photos(tmp_path):
    "A folder with three good pictures, a text file called .jpg and something that is no picture."
    for index in (0, 1, 2):
        colour_picture(index, (64, 64)).save(tmp_path / f"{index}.png")
    (tmp_path / "broken.jpg").write_text("no picture")
    (tmp_path / "notes.txt").write_text("not looked at")
    return tmp_path


def test_importing_the_command_line_imports_nothing_heavy():
    code = "import sys, card_classifier.cli.main; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & HEAVY


def test_json_has_one_object_a_line_with_the_same_keys_for_good_and_bad(photos, tiny_bundle):
    result = run("predict", photos, "--json", "--bundle", tiny_bundle, folder=photos)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [Path(line["file"]).name for line in lines] == ["0.png", "1.png", "2.png", "broken.jpg"]
    assert all(KEYS <= line.keys() for line in lines)
    assert [line["error"] is None for line in lines] == [True, True, True, False]
    assert lines[0]["top"][0] == {"card": lines[0]["card"], "probability": lines[0]["probability"]}
    assert result.returncode == 1, "the exit code is the number of photos that could not be read"
    assert b"1 of 4 could not be read" in result.stderr


def test_a_picture_from_standard_input(photos, tiny_bundle):
    result = run("predict", "-", "--json", "--bundle", tiny_bundle, stdin=(photos / "1.png").read_bytes())
    by_name = run("predict", photos / "1.png", "--json", "--bundle", tiny_bundle)
    assert result.returncode == by_name.returncode == 0
    assert json.loads(result.stdout)["card"] == json.loads(by_name.stdout)["card"]


def test_the_table_names_every_file_and_its_error(photos, tiny_bundle):
    result = run("predict", photos, photos / "missing.jpg", "--bundle", tiny_bundle)
    text = result.stdout.decode()
    for name in ("0.png", "broken.jpg", "missing.jpg"):
        assert name in text
    assert result.returncode == 2


def test_standard_input_without_a_byte_is_an_error_of_that_photo(tiny_bundle):
    result = run("predict", "-", "--json", "--bundle", tiny_bundle)
    assert result.returncode == 1
    assert json.loads(result.stdout)["error"]


def test_more_than_a_hundred_failures_still_end_with_a_code_that_is_not_zero(tmp_path, tiny_bundle):
    for number in range(130):
        (tmp_path / f"{number}.jpg").touch()
    assert run("predict", tmp_path, "--json", "--bundle", tiny_bundle).returncode == 100


def test_a_replaced_network_is_refused_in_one_line(tmp_path, tiny_bundle, photos):
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (bundle / "classifier.onnx").write_bytes(b"something else")
    result = run("predict", photos / "0.png", "--bundle", bundle)
    assert result.returncode == 2
    assert result.stderr.decode().count("\n") == 1
    assert b"classifier.onnx" in result.stderr


def test_names_with_spaces_and_other_scripts(tmp_path, tiny_bundle):
    picture = tmp_path / "my photos" / "карта ♥.png"
    picture.parent.mkdir()
    colour_picture(5, (64, 64)).save(picture)
    result = run("predict", picture.relative_to(tmp_path), "--json", "--bundle", tiny_bundle, folder=tmp_path)
    assert result.returncode == 0
    assert json.loads(result.stdout)["file"] == str(picture.relative_to(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "train.epochs=0"], "train.epochs must be at least 1"),
        (["train", "train.epoch=3"], "did you mean 'train.epochs'"),
        (["train", "model.arch=resnet9000"], "timm has no backbone 'resnet9000'"),
        (["train", "--experiment", "huge"], "there are: adapt, adapt_reader, cpu, detector, gpu, "),
        (["train", "--resume", "yesterday"], "there is no run 'yesterday'"),
        (["train", "data.source=nowhere.zip", "train.epochs=many"], "could not be converted to Integer"),
        (["evaluate", "no-such-run"], "there is no run 'no-such-run'"),
        (["evaluate", "--split", "holdout"], "there is no split 'holdout'"),
        (["data", "prepare", "--source", "nowhere.zip"], "nowhere.zip"),
    ],
)
def test_wrong_input_is_answered_in_one_line_from_any_folder(arguments, message, tmp_path):
    result = run(*arguments, folder=tmp_path)
    assert result.returncode == 2
    error = result.stderr.decode().strip().splitlines()
    assert message in error[-1]
    assert "Traceback" not in result.stderr.decode()
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_settings_shows_every_setting_as_it_would_be(tmp_path):
    result = run("settings", "quick", "train.epochs=3", folder=tmp_path)
    assert result.returncode == 0
    shown = {line.split()[0]: line for line in result.stdout.decode().splitlines()}
    for name, value, limits, explanation in setting_rows(compose("quick", ["train.epochs=3"])):
        line = " ".join(shown[name].split())
        assert line.startswith(" ".join(f"{name} {value!r} {limits}".split()))
        assert explanation.split()[0] in shown[name]


def test_a_setting_out_of_bounds_says_what_is_allowed_and_what_it_means(tmp_path):
    result = run("train", "augment.hue=90", folder=tmp_path)
    assert result.returncode == 2
    assert result.stderr.decode().endswith(
        "augment.hue must be from 0 to 30, got 90.0 (Largest turn of the hue in degrees; at 30 red becomes orange)\n"
    )


def test_data_says_what_is_missing_and_how_to_make_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CARD_CLASSIFIER_DATA", str(tmp_path / "nowhere.zip"))
    result = run("data", folder=tmp_path)
    assert result.returncode == 0
    said = result.stdout.decode().splitlines()
    assert said[0] == f"raw data: {tmp_path / 'nowhere.zip'} (nothing there!)"
    if (checkout() / "data" / "dataset.json").exists():
        assert said[-1] == "next: card-classifier train --experiment cpu"
    else:
        assert said[1] == "shards: none yet; make them with: card-classifier data prepare"


def test_serve_takes_its_options_from_the_settings_and_their_variables(tmp_path):
    offered = run("serve", "--help", folder=tmp_path).stdout.decode()
    for row in group_rows(ServeSettings()):
        switch, _ = ServeSettings.__dataclass_fields__[row.name].metadata["switch"]
        assert (switch or f"--{row.name.replace('_', '-')}") in offered
    refused = subprocess.run(
        [*COMMAND, "serve"], env=os.environ | {"PORT": "70000"}, capture_output=True, text=True, check=False
    )
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: port must be from 0 to 65535, got 70000 (Port to listen on; 0 takes a free one)\n",
    )
