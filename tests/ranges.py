"""Tests the ends of the version ranges in settings.ini: `make oldest` and `make newest`.

usage: ranges.py oldest|newest [EXTRA…]

Resolves the package with these extras anew, the direct requirements as old or as new as the ranges allow, installs that
into `outputs/ranges/…`, and uses it: the command line answers, with the extra `serve` a service does, and with `train`
the tests of what reads, trains, exports and serves run. Without extras it is what `pip install card_classifier` brings.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
ENDS = {"oldest": ("lowest-direct", "3.11"), "newest": ("highest", HERE)}  # And their Python
SHOWN = ("numpy", "pillow", "openvino", "torch", "torchvision", "fastai", "timm", "fastapi", "gradio")
TOOLS = ("pytest", "hypothesis", "httpx", "jsonschema", "psutil", "packaging")  # What the tests need besides
TESTS = ("test_cards", "test_images", "test_bundle", "test_metrics", "test_calibration", "test_predictor",
         "test_shards", "test_export", "test_tasks", "test_training_run", "test_api")
MODULES = {"": ("cli.main", "recognition.predictor", "evaluation.metrics"), "serve": ("serving.site", "records.writer"),
           "train": ("training.tasks", "data.loaders", "lifecycle"), "parquet": (), "heic": (),
           "watch": ("watching.stream",), "video": ("cli.video",),
           "batch": ("batch.score",)}
UV = str(Path(sys.executable).with_name("uv"))


def uv(*arguments: str) -> None:
    "Runs uv; its own words say what is wrong."
    done = subprocess.run([UV, *arguments], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(f"error: uv {' '.join(arguments[:2])} ended with {done.returncode}")


def resolve(end: str, extras: list[str], lock: Path) -> dict[str, str]:
    "Which versions the ranges allow at this end."
    strategy, python = ENDS[end]
    wanted = [part for extra in extras for part in ("--extra", extra)]
    uv("pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links",
       "--resolution", strategy, "--python-version", python, *wanted, "--output-file", str(lock), "setup.py")
    pins = [line.partition("==") for line in lock.read_text(encoding="utf-8").splitlines() if "==" in line]
    return {name: version.split(";")[0].strip() for name, _, version in pins}


def install(end: str, extras: list[str], lock: Path, folder: Path) -> Path:
    "An environment with these versions, the package and what its tests need; the folder of its commands."
    shutil.rmtree(folder, ignore_errors=True)
    uv("venv", "--quiet", "--python", sys.executable if ENDS[end][1] == HERE else ENDS[end][1], str(folder))
    tools = TOOLS if "train" in extras else ()
    into = ("pip", "install", "--quiet", "--python", str(folder))
    uv(*into, "--requirement", str(lock), *tools)
    uv(*into, "--no-deps", "--editable", str(ROOT))
    return folder / ("Scripts" if sys.platform == "win32" else "bin")


def answered(place: Path, service: subprocess.Popen) -> str:
    "The address of a service as soon as it is ready; its log says it."
    for _ in range(900):
        address = re.search(r"http://127\.0\.0\.1:\d+", place.read_text(encoding="utf-8"))
        assert service.poll() is None, place.read_text(encoding="utf-8")
        try:
            if address:
                urllib.request.urlopen(f"{address[0]}/health/ready", timeout=60).close()
                return address[0]
        except OSError:
            pass  # Not yet
        time.sleep(0.2)
    raise OSError("it is not ready")


def serve(command: Path, folder: str, environment: dict[str, str]) -> None:
    "Starts the service and asks it for its page, its description and a prediction."
    place = Path(folder) / "log"
    with place.open("wb") as log:
        started = [command, "serve", "--port", "0", "--workers", "1", "--logs", "json"]
        service = subprocess.Popen(started, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        address = answered(place, service)
        photo = (Path(folder) / "photo.jpg").read_bytes()
        for path, content in (("/", None), ("/openapi.json", None), ("/v1/predict", photo)):
            with urllib.request.urlopen(address + path, content, timeout=120) as answer:
                assert answer.status == 200 and answer.read(), path
    except OSError as error:
        sys.exit(f"error: the service did not answer ({error}); its log:\n{place.read_text(encoding='utf-8')[-3000:]}")
    finally:
        service.terminate()
        service.wait(timeout=60)


def use(commands: Path, extras: list[str]) -> None:
    "Imports what belongs to the extras, asks for help, a prediction and a service, and runs the tests that fit."
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "CARD_CLASSIFIER_", "COVERAGE")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    names = [f"card_classifier.{name}" for extra in ("", *extras) for name in MODULES[extra]]
    code = f"import importlib\nfor name in {names!r}: importlib.import_module(name)"
    subprocess.run([commands / "python", "-c", code], env=environment, check=True)
    with tempfile.TemporaryDirectory() as folder:
        picture = "from PIL import Image; Image.new('RGB', (224, 224), 'white').save('photo.jpg')"
        subprocess.run([commands / "python", "-c", picture], cwd=folder, env=environment, check=True)
        said = subprocess.run([commands / "card-classifier", "predict", "photo.jpg", "--json"], cwd=folder,
                              env=environment, check=True, capture_output=True, text=True).stdout
        helped = [commands / "card-classifier", "predict", "--help"]
        subprocess.run(helped, env=environment, check=True, stdout=subprocess.DEVNULL)
        if "serve" in extras:
            serve(commands / "card-classifier", folder, environment)
    assert json.loads(said)["error"] is None, said
    if "train" in extras:
        files = [f"tests/{name}.py" for name in TESTS]
        subprocess.run([commands / "python", "-m", "pytest", "-q", *files], cwd=ROOT, env=environment, check=True)


def main() -> int:
    "Resolves, installs, uses."
    end, *extras = sys.argv[1:] or [""]
    if end not in ENDS or set(extras) - MODULES.keys():
        print(__doc__.splitlines()[2], file=sys.stderr)
        return 2
    place = ROOT / "outputs" / "ranges"
    place.mkdir(parents=True, exist_ok=True)
    lock = place / f"{end}.txt"
    versions = resolve(end, extras, lock)
    print(f"{end}: " + ", ".join(f"{name} {versions[name]}" for name in SHOWN if name in versions), flush=True)
    try:
        use(install(end, extras, lock, place / end), extras)
    except subprocess.CalledProcessError as error:
        print(f"error: with these versions {Path(str(error.cmd[0])).name} {error.cmd[1]} ended with {error.returncode}",
              error.stderr or "", file=sys.stderr)
        return 1
    print(f"{end}: all well; the versions lie in {lock.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
