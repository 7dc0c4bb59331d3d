"Exporting in processes of their own, from a network in training, and networks that can't be exported."

import hashlib
import subprocess
import sys
import textwrap

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from torch import nn

from card_classifier.bundle import (
    CLASSIFIER,
    CLASSIFIER_FILE,
    BundleError,
    NetworkInfo,
    classifier_ports,
    read_bundle,
    softmax,
)
from card_classifier.settings import ExportSettings
from card_classifier.training.classifier import calibrate, compare_classifiers
from card_classifier.training.export import ExportError, Parity, check_parity, git, make_bundle, onnx_bytes

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
SIZE = 64


def small_network(seed: int = 0, arch: str = "test_byobnet") -> nn.Module:
    "A miniature network with random weights."
    torch.manual_seed(seed)
    return timm.create_model(arch, pretrained=False, num_classes=53)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, images):
    "A network as training leaves it (in training mode, channels-last) and its bundle."
    network = small_network().to(memory_format=torch.channels_last)
    with torch.no_grad():  # As training would have: statistics that are not those of a fresh network
        network(torch.randn(16, 3, SIZE, SIZE))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    targets = np.arange(106) % 53
    temperature, rejection = calibrate(6 * np.eye(53)[targets], targets, ExportSettings())
    described = NetworkInfo(
        input_size=SIZE,
        mean=MEAN,
        std=STD,
        architecture="test_byobnet",
        temperature=temperature,
        run="test",
        thresholds={"rejection": rejection, "whole_photo": 0.9},
        metrics={"valid": {"accuracy": 1.0}},
    )
    content = onnx_bytes(network, classifier_ports(SIZE), MEAN, STD)
    data = {"name": "noise", "kind": "noise"}
    folder = make_bundle(tmp_path_factory.mktemp("export") / "bundle", "test", {CLASSIFIER: (described, content)}, data)
    assert network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    return network, folder


def test_the_bundle_answers_as_the_network_whatever_the_batch(exported, images):
    network, folder = exported
    parity = check_parity(compare_classifiers(network, folder, images), max_gap=0.01)
    assert parity == Parity(20, 0, parity.max_probability_gap)
    assert parity.max_probability_gap < 1e-4
    session = onnxruntime.InferenceSession(str(folder / CLASSIFIER_FILE))
    together = session.run(["logits"], {"images": images})[0]
    one_by_one = np.concatenate([session.run(["logits"], {"images": image[None]})[0] for image in images])
    np.testing.assert_allclose(together, one_by_one, atol=1e-4)


def test_all_right_on_valid_does_not_make_the_bundle_certain(exported):
    info = read_bundle(exported[1])
    assert softmax(6 * np.eye(53), info.classifier.temperature).max(axis=1).mean() == pytest.approx(107 / 108, abs=1e-6)
    assert info.classifier.thresholds == {"rejection": 0.5, "whole_photo": 0.9}
    assert (info.classifier.metrics, info.metrics) == ({"valid": {"accuracy": 1.0}}, {})


def test_the_version_is_the_checksum_of_the_file(exported):
    folder = exported[1]
    assert read_bundle(folder).model_version == hashlib.sha256((folder / CLASSIFIER_FILE).read_bytes()).hexdigest()[:12]


def test_the_graph_is_clean(exported):
    content = (exported[1] / CLASSIFIER_FILE).read_bytes()
    model = onnx.load_from_string(content)
    assert not [
        node.op_type
        for node in model.graph.node
        if node.op_type in ("BatchNormalization", "Shape", "Gather", "Range", "Identity", "Constant")
    ]
    assert not model.functions
    for trace in (b".py", b"site-packages", b"/home", b"stack_trace", b"fx_node"):
        assert trace not in content


def test_another_process_writes_the_same_bytes(exported, tmp_path):
    network, folder = exported
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    code = f"""
        import sys, timm, torch
        from card_classifier.bundle import classifier_ports
        from card_classifier.training.export import onnx_bytes
        network = timm.create_model("test_byobnet", pretrained=False, num_classes=53)
        network.load_state_dict(torch.load(sys.argv[1], weights_only=True))
        open(sys.argv[2], "wb").write(onnx_bytes(network, classifier_ports({SIZE}), {MEAN}, {STD}))
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path / "weights.pt", tmp_path / "again.onnx"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "again.onnx").read_bytes() == (folder / CLASSIFIER_FILE).read_bytes()


def test_a_bundle_of_other_weights_is_caught(exported, images):
    with pytest.raises(ExportError, match="answers differently from the network"):
        check_parity(compare_classifiers(small_network(seed=5), exported[1], images), max_gap=0.01)
    assert compare_classifiers(small_network(seed=5), exported[1], images).n_images == 20


def test_weights_that_are_not_numbers_are_caught(exported, images):
    broken = small_network()
    nn.init.constant_(broken.get_classifier().bias, float("nan"))
    with pytest.raises(ExportError, match="nan apart"):
        check_parity(compare_classifiers(broken, exported[1], images), max_gap=0.01)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 32, 32, 3), np.uint8),
        np.zeros((0, SIZE, SIZE, 3), np.uint8),
        np.zeros((2, SIZE, SIZE, 3), np.float32),
    ],
)
def test_unusable_images_are_refused(exported, wrong):
    with pytest.raises(ExportError, match="must be uint8"):
        compare_classifiers(exported[0], exported[1], wrong)


def test_a_missing_bundle_says_what_to_do(exported, images, tmp_path):
    with pytest.raises(BundleError, match="there is no bundle folder"):
        compare_classifiers(exported[0], tmp_path / "nothing", images)


def test_a_network_that_no_graph_can_hold_is_refused():
    class Undecided(nn.Module):
        def forward(self, pixels):
            return pixels.mean((1, 2)) if pixels.sum() > 0 else pixels.mean((2, 3))

    with pytest.raises(ExportError, match="Undecided can't be exported at 64 px"):
        onnx_bytes(Undecided(), classifier_ports(SIZE), MEAN, STD)


def test_without_git_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git(tmp_path, "status") is None
