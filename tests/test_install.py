"The package as somebody gets it who only wants to classify a picture: a wheel in a fresh environment."

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import colour_picture

ROOT = Path(__file__).resolve().parent.parent
UV = str(Path(sys.executable).with_name("uv"))


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    "The files of the package that git knows."
    listed = subprocess.run(
        ["git", "ls-files", "card_classifier"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return listed.stdout.split("\n")[:-1]


@pytest.fixture(scope="module")
def build(tmp_path_factory, tracked) -> tuple[Path, str]:
    "The package, built from what git knows of it, and what setuptools said."
    folder = tmp_path_factory.mktemp("build")
    for name in (*tracked, "setup.py", "settings.ini", "pyproject.toml", "README.md"):
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    command = [
        UV,
        "build",
        "--wheel",
        "--no-build-isolation",
        "--python",
        sys.executable,
        "--out-dir",
        folder / "wheel",
    ]
    done = subprocess.run([*command, folder / "source"], capture_output=True, text=True, check=True)
    return next((folder / "wheel").glob("*.whl")), done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(build) -> Path:
    "The package, built."
    return build[0]


@pytest.fixture(scope="module")
def fresh(wheel, tmp_path_factory) -> Path:
    "The folder of the commands in a fresh environment that holds the package and what it requires, nothing else."
    folder = tmp_path_factory.mktemp("fresh environment") / "venv"
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    subprocess.run(
        [
            UV,
            "pip",
            "install",
            "--quiet",
            "--python",
            str(folder),
            "--constraint",
            str(ROOT / "requirements.lock"),
            str(wheel),
        ],
        check=True,
    )
    return folder / ("Scripts" if sys.platform == "win32" else "bin")


def run(fresh: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess:
    "What the command answers in a folder, without anything that this test's own environment says."
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CARD_CLASSIFIER", "PYTHON", "COVERAGE"))
    }
    return subprocess.run(
        [fresh / "card-classifier", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_holds_every_file_of_the_package_and_setuptools_has_no_complaint(build, tracked):
    wheel, said = build
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("card_classifier/")}
    assert inside == set(tracked)
    assert "Warning" not in said, said


def test_the_wheel_holds_the_released_bundle_and_no_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "card_classifier/released/bundle.json" in names
    assert "card_classifier/released/classifier.onnx" in names
    assert not [name for name in names if name.endswith((".jpg", ".tar", ".safetensors", ".pt", ".pkl"))]
    assert wheel.stat().st_size < 20_000_000


def test_predict_works_at_once_without_the_training_stack(fresh, tmp_path):
    colour_picture(3, (224, 224)).save(tmp_path / "photo.jpg")
    result = run(fresh, "predict", "photo.jpg", "--json", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["error"] is None
    installed = subprocess.run(
        [UV, "pip", "list", "--python", str(fresh / "python"), "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert not {package["name"] for package in json.loads(installed)} & {
        "torch",
        "fastai",
        "timm",
        "wandb",
        "dvc",
        "gradio",
        "pandas",
    }


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["settings", "quick"], "train"),
        (["train", "--experiment", "quick"], "train"),
        (["serve"], "serve"),
        (["records"], "serve"),
        (["data", "diff", "HEAD"], "train"),
        (["predict", "film.mp4"], "video"),
        (["score", ".", "--to", "answers"], "batch"),
    ],
)
def test_a_command_without_its_packages_names_the_extra_that_brings_them(fresh, tmp_path, arguments, extra):
    experiment = tmp_path / "configs" / "experiment" / "quick.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.touch()
    recipe = tmp_path / "nbs" / "recipes" / "train.ipynb"
    recipe.parent.mkdir(parents=True)
    recipe.touch()  # what a checkout is recognised by
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x14ftypisom")
    result = run(fresh, *arguments, folder=tmp_path)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1, result.stderr
    assert f"pip install 'card_classifier[{extra}]'" in result.stderr


def test_train_says_that_it_needs_a_checkout(fresh, tmp_path):
    result = run(fresh, "train", folder=tmp_path)
    assert result.returncode == 2
    assert "checkout" in result.stderr
    assert "Traceback" not in result.stderr
