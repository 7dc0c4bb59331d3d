"Models that are worse on purpose, put to the gate: each is refused, and the line that refuses it says why."

import dataclasses
import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.numpy_helper import from_array, to_array
from PIL import Image

from card_classifier.bundle import (
    CLASSIFIER,
    DETECTOR,
    BundleError,
    BundleInfo,
    model_version_of,
    read_bundle,
    released_bundle,
    write_bundle,
)
from card_classifier.cards import CARDS, CLASS_NAMES
from card_classifier.cli.gate import hands_set
from card_classifier.lifecycle.checks import FAIL, PASS, WARN, ImagesHere
from card_classifier.lifecycle.gate import judge
from card_classifier.lifecycle.photographs import PhotoSet, TrueCard, TruePhoto
from card_classifier.render.dataset import render_image
from card_classifier.settings import GateSettings

RELEASED = released_bundle()
INFO = read_bundle(RELEASED)
HERE = {INFO.data["checksum"]: ImagesHere(INFO.data["name"], "real", INFO.data["checksum"], 36, 0)}


@pytest.fixture(scope="module")
def images() -> PhotoSet:
    "Three rendered images of each class, from decks that no training shows."
    photos = []
    for card in CARDS:
        for number in range(3):
            buffer = BytesIO()
            Image.fromarray(render_image(5, "valid", card, number, 224)).save(buffer, "JPEG", quality=92)
            photos.append(TruePhoto(f"{card.class_name} {number}", buffer.getvalue(), (TrueCard(card.index),)))
    return PhotoSet("valid", tuple(photos))


def rewired(folder: Path, change) -> Path:
    "The released bundle with a changed classifier: whole, its checksums right."
    model = onnx.load(RELEASED / INFO.classifier.file)
    change(model)
    contents = {kind: (RELEASED / network.file).read_bytes() for kind, network in INFO.networks.items()}
    contents[CLASSIFIER] = model.SerializeToString()
    return write_bundle(folder, dataclasses.replace(INFO, model_version=model_version_of(contents)), contents)


def reworded(folder: Path, info: BundleInfo) -> Path:
    "The released networks under another description."
    return write_bundle(folder, info, {kind: RELEASED / network.file for kind, network in info.networks.items()})


def behind(model, node_type: str, *inputs: str, **attributes) -> None:
    "Appends a node that changes the logits."
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["before" if name == output else name for name in node.output]
    model.graph.node.append(helper.make_node(node_type, ["before", *inputs], [output], **attributes))


def shuffled_labels(model) -> None:
    "Three classes bear each other's names."
    order = np.arange(len(CARDS))
    order[[4, 5, 6]] = 5, 6, 4
    model.graph.initializer.append(from_array(order, "order"))
    behind(model, "Gather", "order", axis=1)


def two_bits(model) -> None:
    "Every array of weights in four steps, and nothing calibrated anew."
    for tensor in model.graph.initializer:
        values = to_array(tensor)
        if values.dtype == np.int8 and values.ndim > 1:
            rounded = np.clip(np.round(values / 64.0) * 64, -128, 127).astype(np.int8)
            tensor.CopyFrom(from_array(rounded, tensor.name))


def slow(model) -> None:
    "The same answers after a long detour, whose product is added at no weight: many times as slow."
    size, name = 1800, "detour"
    square = np.full((size, size), 1e-4, np.float32)
    tensors = {"square": square, "first": np.ones((53, size), np.float32), "last": np.ones((size, 53), np.float32)}
    model.graph.initializer.extend(from_array(value, f"{name}_{key}") for key, value in tensors.items())
    model.graph.initializer.append(from_array(np.float32(1e-30), f"{name}_none"))
    output, places = model.graph.output[0].name, ["first", *["square"] * 60, "last"]
    for node in model.graph.node:
        node.output[:] = ["before" if one == output else one for one in node.output]
    at = "before"
    for number, place in enumerate(places):
        model.graph.node.append(helper.make_node("MatMul", [at, f"{name}_{place}"], [f"{name}_{number}"]))
        at = f"{name}_{number}"
    model.graph.node.append(helper.make_node("Mul", [at, f"{name}_none"], [f"{name}_small"]))
    model.graph.node.append(helper.make_node("Add", ["before", f"{name}_small"], [output]))


def refusals(report) -> set[str]:
    "Names of the checks that refuse."
    return {line.name for line in report.refusals}


def test_the_model_in_production_passes_beside_itself(images):
    report = judge(RELEASED, RELEASED, [images], HERE)
    assert report.passed, report.rows()
    lines = {line.name: line for line in report.lines}
    assert (lines["valid: answers"].numbers["n_lost"], lines["valid: answers"].numbers["chance"]) == (0, 1.0)
    assert 0 < lines["valid: answers"].numbers["power"] < 1 and "noticed with" in lines["valid: answers"].words
    assert 0.6 < lines["valid: time"].numbers["ratio"] < 1.6, "both were measured in turn, in one process"
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (shuffled_labels, {"valid: answers", "valid: classes"}),
        (two_bits, {"valid: answers"}),
        (slow, {"valid: time"}),
    ],
)
def test_a_worse_network_is_refused(images, tmp_path, change, expected):
    limits = GateSettings(max_megabytes=50)  # The slow one is large, which is another check's business
    shown = PhotoSet("valid", images.photos[::12]) if change is slow else images
    report = judge(rewired(tmp_path / "worse", change), RELEASED, [shown], HERE, limits)
    assert expected <= refusals(report), report.rows()
    if change is slow:
        ratio = next(line for line in report.lines if line.name == "valid: time").numbers["ratio"]
        assert ratio > 2 * limits.max_slowdown, "so slow that a busy machine can't hide it"
    if change is shuffled_labels:
        words = next(line.words for line in report.refusals if line.name == "valid: classes")
        assert all(CLASS_NAMES[index] in words for index in (4, 5, 6)), words
        accepted = judge(tmp_path / "worse", RELEASED, [images], HERE, limits, [CLASS_NAMES[i] for i in (4, 5, 6)])
        assert "valid: classes" not in refusals(accepted) and "valid: answers" in refusals(accepted)


def test_a_network_that_answers_with_no_number_is_refused(images, tmp_path):
    def broken(model):
        model.graph.initializer.append(from_array(np.float32("inf"), "infinite"))
        behind(model, "Mul", "infinite")

    few = PhotoSet("valid", images.photos[:9])
    report = judge(rewired(tmp_path / "broken", broken), RELEASED, [few], HERE)
    assert refusals(report) == {"valid: answers"} and "not finite" in report.refusals[0].words


def test_untrue_probabilities_are_refused_though_the_answers_are_the_same(images, tmp_path):
    unsure = INFO.with_network(
        CLASSIFIER,
        temperature=2.5 * INFO.classifier.temperature,
        thresholds={"rejection": 0.02, "whole_photo": 0.02},
    )
    report = judge(reworded(tmp_path / "unsure", unsure), RELEASED, [images], HERE)
    assert refusals(report) == {"valid: calibration"}, report.rows()


def changed_settings(network, **values):
    "The training of a network with other settings."
    return {**network.training, "settings": {**network.training["settings"], **values}}


def test_what_a_bundle_says_about_itself_can_refuse_it(images, tmp_path):
    network = INFO.classifier
    leaking = INFO.with_network(CLASSIFIER, training=changed_settings(network, **{"data.leave_out": False}))
    *known, first = INFO.detector.ancestors
    orphan = INFO.with_network(DETECTOR, ancestors=known)
    nameless = INFO.with_network(DETECTOR, ancestors=[*known, {**first, "settings": None}])
    unknown = dataclasses.replace(INFO, data={})
    deck = dataclasses.replace(INFO, data={**INFO.data, "kind": "deck"})
    alone = dataclasses.replace(INFO, networks={CLASSIFIER: network})
    misnamed = dataclasses.replace(INFO, model_version="c0ffee")
    cases = {
        "leaks": (leaking, "leave_out"),
        "ancestry": (orphan, first["run"]),
        "images": (unknown, "nobody knows"),
        "networks": (alone, "production has a detector"),
        "files": (misnamed, "calls itself c0ffee"),
    }
    for name, (info, words) in cases.items():
        report = judge(reworded(tmp_path / name, info), RELEASED, [images], HERE)
        assert name in refusals(report) and words in " ".join(line.words for line in report.refusals), report.rows()
        assert (report.lines[-1].name, report.lines[-1].verdict) == ("answers", WARN), "nothing had to be measured"
    for name, info in {"nameless": nameless, "deck": deck}.items():
        assert not judge(reworded(tmp_path / name, info), RELEASED, [images], HERE).passed
    first = judge(reworded(tmp_path / "first", deck), None, [images], {})
    assert first.passed and any("not from real cards" in line.words for line in first.lines), first.rows()


def test_more_networks_than_production_has_may_take_time_and_fewer_are_refused(tmp_path):
    networks = {kind: INFO.networks[kind] for kind in (CLASSIFIER, DETECTOR)}
    contents = {kind: (RELEASED / network.file).read_bytes() for kind, network in networks.items()}
    fewer = dataclasses.replace(INFO, networks=networks, model_version=model_version_of(contents))
    before = write_bundle(tmp_path / "before", fewer, contents)
    hands = hands_set(GateSettings(n_hands=2, scene_size=400), lambda *step: None)
    report = judge(RELEASED, before, [hands], HERE, GateSettings(max_slowdown=0.01))
    lines = {line.name: line for line in report.lines}
    assert report.passed, report.rows()
    assert lines["hands: time"].verdict == WARN and "production has no index_detector" in lines["hands: time"].words
    assert lines["hands: answers"].numbers["n"] == 2
    refused = judge(before, RELEASED, [hands], HERE)
    assert refusals(refused) == {"networks"} and "--index-reader RUN" in refused.refusals[0].words


def test_one_byte_is_found_in_either_bundle(images, tmp_path):
    changed = reworded(tmp_path / "changed", INFO)
    content = bytearray((changed / "detector.onnx").read_bytes())
    content[-1000] ^= 1
    (changed / "detector.onnx").write_bytes(content)
    report = judge(changed, RELEASED, [images], HERE)
    assert refusals(report) == {"files"} and "get the bundle again" in report.refusals[0].words
    with pytest.raises(BundleError, match="the model in production can't be compared with"):
        judge(RELEASED, changed, [images], HERE)


def test_copies_of_judged_images_in_training_are_found(images):
    leaking = {key: dataclasses.replace(one, n_copies=4) for key, one in HERE.items()}
    report = judge(RELEASED, RELEASED, [images], leaking)
    assert refusals(report) == {"leaks"} and "4 images that it is judged by" in report.refusals[0].words


def test_the_command_ends_with_1_when_it_refuses_and_with_2_when_it_is_misused(tmp_path):
    odd = tmp_path / "über Nacht"
    odd.mkdir()
    changed = reworded(odd / "a model", dataclasses.replace(INFO, code_version=""))

    def gate(*arguments):
        command = [sys.executable, "-c", "from card_classifier.cli.main import app; app()", "gate", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=odd, timeout=300, check=False)

    refused = gate("a model", "--against", str(RELEASED), "--json")
    report = json.loads(refused.stdout)
    assert (refused.returncode, report["passed"]) == (1, False), refused.stderr
    assert [line["name"] for line in report["lines"] if line["verdict"] == FAIL] == ["code"]
    assert report["lines"][0]["verdict"] == PASS
    for arguments in (["nowhere"], [str(changed), "--against", "nowhere"], [str(changed), "--accept-class", "ace"]):
        misused = gate(*arguments)
        assert misused.returncode == 2 and misused.stderr.count("\n") == 1 and "Traceback" not in misused.stderr
