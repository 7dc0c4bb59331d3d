"The package as somebody gets it who only wants to classify a picture: a wheel in a fresh environment."
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import colour_picture

ROOT = Path(__file__).resolve().parent.parent
UV = str(Path(sys.executable).with_name("uv"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    "The package, built."
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([UV, "build", "--wheel", "--quiet", "--no-build-isolation", "--python", sys.executable, "--out-dir", str(folder), str(ROOT)], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def fresh(wheel, tmp_path_factory) -> Path:
    "The folder of the commands in a fresh environment that holds the package and what it requires, nothing else."
    folder = tmp_path_factory.mktemp("fresh environment") / "venv"
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    subprocess.run([UV, "pip", "install", "--quiet", "--python", str(folder), "--constraint", str(ROOT / "requirements.lock"), str(wheel)], check=True)
    return folder / ("Scripts" if sys.platform == "win32" else "bin")


def test_the_wheel_holds_the_released_bundle_and_no_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "card_classifier/released/bundle.json" in names
    assert "card_classifier/released/classifier.onnx" in names
    assert not [name for name in names if name.endswith((".jpg", ".tar", ".safetensors", ".pt", ".pkl"))]
    assert wheel.stat().st_size < 20_000_000


def test_predict_works_at_once_without_the_training_stack(fresh, tmp_path):
    colour_picture(3, (224, 224)).save(tmp_path / "photo.jpg")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CARD_CLASSIFIER", "PYTHON", "COVERAGE"))}
    result = subprocess.run([fresh / "card-classifier", "predict", "photo.jpg", "--json"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["error"] is None
    installed = subprocess.run([UV, "pip", "list", "--python", str(fresh / "python"), "--format", "json"], capture_output=True, text=True, check=True).stdout
    assert not {package["name"] for package in json.loads(installed)} & {"torch", "fastai", "timm", "wandb", "dvc", "gradio", "pandas"}


def test_train_says_that_it_needs_a_checkout(fresh, tmp_path):
    result = subprocess.run([fresh / "card-classifier", "train"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "checkout" in result.stderr
    assert "Traceback" not in result.stderr
