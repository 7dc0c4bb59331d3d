"What several test files share: a tiny but real bundle whose right answers are known."

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import settings
from onnx.numpy_helper import from_array
from PIL import Image

from card_classifier.bundle import BundleInfo, NetworkInfo, write_bundle

if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # a shell starts background jobs that way, and every process started here would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("any machine", deadline=None)  # a busy machine is slow, not wrong
settings.load_profile("any machine")

LONG = ("pipeline", "registry", "training_run", "data_versions", "workflows", "sweeps", "demo", "api", "gate", "image")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    "Begins with the files that take minutes, so that no worker is left alone with one of them at the end."
    ranks = {f"test_{name}": rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(LONG)))


def environment_of_a_clone() -> dict[str, str]:
    "Environment variables for commands of another checkout: coverage of files that are not ours would only take time."
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}


COLOURS = np.array(list(itertools.product((0, 85, 170, 255), repeat=3))[:53], np.uint8)


def colour_network(size: int = 16, sharpness: float = 100) -> bytes:
    "An ONNX file that recognises one colour for each card: the nearest to the average of the image."
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        colours (uint8[n, {size}, {size}, 3] images) => (float[n, 53] logits) {{
            pixels = Cast<to = 1>(images)
            average = ReduceMean<axes = [1, 2], keepdims = 0>(pixels)
            logits = Gemm(average, weight, bias)
        }}"""
    )
    points = COLOURS / 255
    weight = from_array((2 * sharpness * points.T / 255).astype(np.float32), "weight")
    bias = from_array((-sharpness * (points**2).sum(1)).astype(np.float32), "bias")
    model.graph.initializer.extend([weight, bias])
    return model.SerializeToString()


def colour_picture(index: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    "A picture that `colour_network` takes for the card with this class index."
    return Image.new("RGB", size, tuple(COLOURS[index].tolist()))


@pytest.fixture(scope="session")
def tiny_info() -> BundleInfo:
    "What the tiny bundle says about itself."
    classifier = NetworkInfo(
        input_size=16,
        mean=[0, 0, 0],
        std=[1, 1, 1],
        architecture="three nodes",
        thresholds={"rejection": 0.5, "whole_photo": 0.9},
        temperature=1.5,
    )
    return BundleInfo(
        name="colours",
        model_version="colours-1",
        created="2026-11-01T12:00:00+00:00",
        networks={"classifier": classifier},
    )


@pytest.fixture(scope="session", autouse=True)
def engine_cache(tmp_path_factory) -> Path:
    "A folder for compiled networks, instead of the user's."
    os.environ["CARD_CLASSIFIER_CACHE"] = str(tmp_path_factory.mktemp("compiled"))
    return Path(os.environ["CARD_CLASSIFIER_CACHE"])


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory, tiny_info) -> Path:
    "A bundle of 1 kB that recognises colours; not to be changed: copy it first."
    return write_bundle(tmp_path_factory.mktemp("bundles") / "colours", tiny_info, {"classifier": colour_network()})


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    "Mounts file systems of a few bytes, such as `64k`; skips where that is not allowed."
    disks = []

    def mounted(size: str) -> Path:
        disk = tmp_path / f"small disk of {size}"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk]
        if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("needs the right to mount a tmpfs")
        disks.append(disk)
        return disk

    yield mounted
    for disk in disks:
        subprocess.run(["umount", disk], check=True)
