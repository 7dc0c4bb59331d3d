"The faster form of a network on a small rendered deck: what it is judged by and what its bundle then says."

import time

import numpy as np
import pytest
import timm
import torch

from card_classifier.settings import AugmentSettings, DataSettings, ExportSettings
from card_classifier.data.cache import ready_shards
from card_classifier.bundle import classifier_ports
from card_classifier.recognition.engine import ENGINES, open_network
from card_classifier.training.classifier import varied_images
from card_classifier.training.export import ExportError, onnx_bytes
from card_classifier.training.quantize import faster_form

SIZE = 64


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    "212 small pictures of rendered cards."
    return ready_shards(
        DataSettings(source="deck", deck_train=2, deck_valid=1, deck_test=1, deck_size=SIZE),
        tmp_path_factory.mktemp("checkout"),
    )


@pytest.fixture(scope="module")
def content() -> bytes:
    "A miniature network with random weights."
    torch.manual_seed(0)
    return onnx_bytes(
        timm.create_model("test_byobnet", pretrained=False, num_classes=53).eval(),
        classifier_ports(SIZE),
        (0.5,) * 3,
        (0.25,) * 3,
    )


def opener(full: float, faster: float = 0):
    "Opens networks as they are served; each takes so many milliseconds longer."

    def open_file(file, precision):
        network = open_network(file, classifier_ports(SIZE), engine=ENGINES[0], precision=precision)

        def slow(images):
            time.sleep((full if file.name == "full.onnx" else faster) / 1000)
            return network(images)

        return slow

    return open_file


def test_what_passes_the_gate_is_measured_anew(shards, content, tiny_info):
    full = tiny_info.with_network("classifier", input_size=SIZE, metrics={"valid": {"accuracy": 0.99}})
    info, small, comparison = faster_form(full, content, shards, opener(20), ENGINES[0], ExportSettings(), int8=True)
    assert len(small) < len(content) and comparison.speed > 1.25
    metrics = info.classifier.metrics
    assert (metrics["gate"]["engine"], info.classifier.bits, info.classifier.precision) == (ENGINES[0], 8, "f32")
    assert info.model_version != full.model_version and info.classifier.temperature != full.classifier.temperature
    assert metrics["full"] == full.classifier.metrics and metrics["gate"] == comparison.to_dict()
    assert (metrics["valid"]["n"], metrics["test"]["n"], comparison.n_varied) == (53, 53, 4 * 53)
    assert metrics["valid"]["accuracy"] != 0.99, "the figures of the full network are not those of the faster one"


def test_bfloat16_keeps_the_file(shards, content, tiny_info):
    full = tiny_info.with_network("classifier", input_size=SIZE)
    info, same, _ = faster_form(full, content, shards, opener(20), ENGINES[0], ExportSettings(), bf16=True)
    assert same == content and (info.classifier.precision, info.classifier.bits) == ("bf16", 32)


def test_a_form_that_is_not_faster_is_refused(shards, content, tiny_info):
    full = tiny_info.with_network("classifier", input_size=SIZE)
    with pytest.raises(ExportError, match="times as fast"):
        faster_form(full, content, shards, opener(5, 5), ENGINES[0], ExportSettings())


def test_images_are_varied_always_alike():
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    first, second = (varied_images(images, AugmentSettings(), seed=0, times=2) for _ in range(2))
    assert first.shape == (6, SIZE, SIZE, 3) and (first == second).all()
    assert (first[:3] != first[3:]).any() and (first[:3] != images).any()
