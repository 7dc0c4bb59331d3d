"Bundles: written whole, read only when they are what they say, and converted from the format before."

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from conftest import colour_network
from hypothesis import given
from hypothesis import strategies as st

from card_classifier.bundle import (
    BUNDLE_FILE,
    CLASSIFIER_FILE,
    RUN_NAME,
    BundleError,
    convert_bundle,
    model_version_of,
    read_bundle,
    released_bundle,
    softmax,
    write_bundle,
)

ROOT = Path(__file__).parent.parent
COMMAND = Path(sys.executable).with_name("card-classifier")


# --- probabilities ---


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=53), st.floats(0.01, 100))
def test_softmax_gives_probabilities_in_the_order_of_the_logits(logits, temperature):
    probabilities = softmax(logits, temperature)
    assert abs(probabilities.sum() - 1) < 1e-9 and (probabilities >= 0).all()
    assert probabilities[int(np.argmax(logits))] == probabilities.max()


# --- bundles ---


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    "A copy of the tiny bundle that a test may damage."
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def change(bundle, where=None, **values) -> None:
    "Changes keys of a bundle's description, or of one of its networks; None removes a key."
    content = json.loads((bundle / BUNDLE_FILE).read_text())
    changed = content if where is None else content["networks"][where]
    changed.update(values)
    for key in [key for key, value in changed.items() if value is None and key in values]:
        del changed[key]
    (bundle / BUNDLE_FILE).write_text(json.dumps(content))


def test_a_bundle_is_read_as_it_was_written(tiny_info, tmp_path):
    described = tiny_info.with_network(
        "classifier", mean=(0.1, 0.2, 0.3), metrics={"accuracy": 0.97}, training={"seed": 1}
    )
    info = dataclasses.replace(described, metrics={"note": "gemessen ♥"})
    (tmp_path / "somewhere.onnx").write_bytes(colour_network())
    folder = write_bundle(tmp_path / "deep" / "bundle", info, {"classifier": tmp_path / "somewhere.onnx"})
    found = read_bundle(folder)
    assert found == info.with_network("classifier", file=CLASSIFIER_FILE, sha256=found.classifier.sha256)
    first = (folder / BUNDLE_FILE).read_bytes()
    assert b"\r" not in first and write_bundle(folder, info, {"classifier": colour_network()}) == folder
    assert (folder / BUNDLE_FILE).read_bytes() == first


@pytest.mark.parametrize(
    "values, words",
    [
        ({"format": 4}, "update card_classifier"),
        ({"format": 2}, "card-classifier bundle convert"),
        ({"format": 1}, "export the model again"),
        ({"format": "1"}, "does not describe a bundle"),
        ({"format": True}, "does not describe a bundle"),
        ({"class_names": ["ace of clubs"]}, "53 cards"),
        ({"class_names": [{}] * 53}, "53 cards"),
        ({"surprise": 1}, r"keys: \['surprise'\]"),
        ({"data": None}, r"keys: \['data'\]"),
        ({"networks": {}}, "networks must be some of classifier, detector"),
        ({"networks": []}, "networks must be a dict"),
        ({"networks": {"classifier": []}}, "has missing or unknown keys:"),
    ],
)
def test_a_wrong_description_is_refused_with_advice(bundle, values, words):
    change(bundle, **values)
    with pytest.raises(BundleError, match=words):
        read_bundle(bundle)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"temperature": 0}, "temperature must be above 0"),
        ({"temperature": "hot"}, "temperature must be a finite number"),
        ({"temperature": True}, "temperature must be a finite number"),
        ({"temperature": float("inf")}, "temperature must be a finite number"),
        ({"temperature": None}, r"classifier, has missing or unknown keys: \['temperature'\]"),
        (
            {"thresholds": {"rejection": 1.5, "whole_photo": 0.9}},
            "thresholds must be rejection and whole_photo, from 0 to 1",
        ),
        ({"thresholds": {"rejection": 0.5}}, "thresholds must be rejection and whole_photo, from 0 to 1"),
        (
            {"thresholds": {"rejection": True, "whole_photo": 0.9}},
            "thresholds must be rejection and whole_photo, from 0 to 1",
        ),
        ({"thresholds": 0.5}, "thresholds must be a dict"),
        ({"input_size": 0}, "input_size must be from 16"),
        ({"input_size": 16.5}, "input_size must be"),
        ({"mean": [1, 2]}, "three numbers each"),
        ({"mean": 5}, "mean must be a list"),
        ({"precision": "f8"}, "precision must be f32 or bf16"),
        ({"precision": []}, "precision must be a str"),
        ({"bits": 4}, "bits must be 8 or 32"),
        ({"sha256": "00"}, "SHA-256"),
        ({"sha256": 7}, "sha256 must be a str"),
        ({"sha256": "0" * 64}, "checksum differs.*get the bundle again"),
        ({"file": []}, "file must be a str"),
        ({"file": ""}, "plain name"),
        ({"file": "../../etc/passwd"}, "plain name"),
        ({"file": ".."}, "plain name"),
        ({"file": "a/b"}, "plain name"),
        ({"file": "classifier.onnx\n"}, "plain name"),
        ({"file": "bundle.json"}, "plain name"),
    ],
)
def test_a_wrong_network_is_refused_with_advice(bundle, values, words):
    change(bundle, "classifier", **values)
    with pytest.raises(BundleError, match=words):
        read_bundle(bundle)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"null", b"[" * 100_000, b'{"format": 1}', b'"format"'])
def test_a_damaged_description_is_refused(bundle, content):
    (bundle / BUNDLE_FILE).write_bytes(content)
    with pytest.raises(BundleError):
        read_bundle(bundle)


def test_missing_files_are_named(bundle, tmp_path):
    (bundle / CLASSIFIER_FILE).unlink()
    with pytest.raises(BundleError, match=r"classifier.onnx can.t be read"):
        read_bundle(bundle)
    with pytest.raises(BundleError, match="there is no bundle folder"):
        read_bundle(tmp_path / "nowhere")


@given(st.binary(max_size=200))
def test_arbitrary_descriptions_are_bundle_errors(content):
    with TemporaryDirectory() as folder:
        with open(os.path.join(folder, BUNDLE_FILE), "wb") as file:
            file.write(content)
        with pytest.raises(BundleError):
            read_bundle(folder)


def test_nothing_is_overwritten_silently(bundle, tiny_info, tmp_path):
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    with pytest.raises(BundleError, match="holds another bundle"):
        write_bundle(bundle, tiny_info, {"classifier": b"other"})
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(BundleError, match="holds something that is not a bundle"):
            write_bundle(tmp_path / "notes", tiny_info, {"classifier": b"other"}, overwrite=overwrite)
    write_bundle(bundle, tiny_info, {"classifier": b"other"}, overwrite=True)
    assert (bundle / CLASSIFIER_FILE).read_bytes() == b"other"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "notes"]


def test_two_writers_leave_one_whole_bundle(tiny_info, tmp_path):
    results = []

    def write(content: bytes) -> None:
        try:
            results.append(write_bundle(tmp_path / "bundle", tiny_info, {"classifier": content}))
        except (BundleError, OSError) as error:
            results.append(error)

    writers = [threading.Thread(target=write, args=(bytes([number]) * 100_000,)) for number in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sum(not isinstance(result, Exception) for result in results) == 1
    read_bundle(tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_failed_write_leaves_nothing(tiny_info, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):
        write_bundle(tmp_path / "file" / "bundle", tiny_info, {"classifier": b"model"})
    with pytest.raises(BundleError, match="JSON"):
        write_bundle(
            tmp_path / "bundle",
            dataclasses.replace(tiny_info, metrics={"loss": float("nan")}),
            {"classifier": b"model"},
        )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- the format before ---


@pytest.fixture
def old_bundle(tmp_path):
    "The released bundle as it was in format 2: the same networks under their old names, and their description."
    folder = tmp_path / "old"
    folder.mkdir()
    shutil.copy(released_bundle() / "classifier.onnx", folder / "model.onnx")
    shutil.copy(released_bundle() / "detector.onnx", folder / "finder.onnx")
    shutil.copy(ROOT / "tests" / "data" / "bundle-format-2.json", folder / "bundle.json")
    return folder


def test_the_format_before_is_refused_with_the_command_that_converts_it(old_bundle):
    with pytest.raises(
        BundleError, match=f"convert it with: card-classifier bundle convert {re.escape(str(old_bundle))}"
    ):
        read_bundle(old_bundle)


@pytest.mark.parametrize("to", ["", "new"])
def test_the_format_before_is_converted_and_nothing_is_lost(old_bundle, tmp_path, to):
    old = json.loads((old_bundle / "bundle.json").read_text())
    command = [COMMAND, "bundle", "convert", str(old_bundle), *(["--to", str(tmp_path / to)] if to else [])]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / to if to else old_bundle
    assert (old_bundle / "finder.onnx").exists() is bool(to), "what is converted elsewhere stays"
    info, released = read_bundle(folder), read_bundle(released_bundle())
    assert sorted(path.name for path in folder.iterdir()) == ["bundle.json", "classifier.onnx", "detector.onnx"]
    assert (info.name, info.created) == (released.name, released.created)
    assert (info.model_version, info.name) == (old["model_version"], old["name"])
    for kind, network in info.networks.items():
        known = released.networks[kind]
        for field in (
            "input_size",
            "mean",
            "std",
            "architecture",
            "thresholds",
            "temperature",
            "precision",
            "bits",
            "run",
            "sha256",
        ):
            assert getattr(network, field) == getattr(known, field), (kind, field)
        assert network.ancestors and all(one["settings"] is None for one in network.ancestors), "unknown, not invented"
    assert info.classifier.metrics.keys() | info.metrics.keys() == old["metrics"].keys()
    assert info.classifier.training == old["training"] and info.detector.metrics == {
        "corner_error": old["finder"]["corner_error"]
    }


@pytest.mark.parametrize(
    "break_it, words",
    [
        (lambda folder: (folder / "model.onnx").write_bytes(b"swapped"), "checksum differs"),
        (lambda folder: (folder / "finder.onnx").unlink(), "can't be read"),
        (lambda folder: (folder / "bundle.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "bundle.json").write_text('{"format": 2}'), "export the model again"),
        (lambda folder: (folder / "bundle.json").write_text('{"format": 3}'), "nothing to convert"),
        (lambda folder: (folder / "bundle.json").write_bytes(b"\xff"), "not JSON"),
    ],
)
def test_what_cannot_be_converted_stays_as_it_is(old_bundle, break_it, words):
    break_it(old_bundle)
    before = {path.name: path.read_bytes() for path in old_bundle.iterdir()}
    with pytest.raises(BundleError, match=words):
        convert_bundle(old_bundle)
    assert {path.name: path.read_bytes() for path in old_bundle.iterdir()} == before


def test_a_tricky_file_name_in_the_format_before_is_no_way_out_of_the_folder(old_bundle, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    old = json.loads((old_bundle / "bundle.json").read_text())
    old["files"]["../secret"] = hashlib.sha256(b"secret").hexdigest()
    (old_bundle / "bundle.json").write_text(json.dumps(old))
    with pytest.raises(BundleError, match="export the model again"):
        convert_bundle(old_bundle, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# --- the released one ---


def test_the_released_bundle_knows_its_ancestors_back_to_public_weights():
    info = read_bundle(released_bundle())
    contents = {kind: (released_bundle() / network.file).read_bytes() for kind, network in info.networks.items()}
    assert info.model_version == model_version_of(contents) == "1a307b8bad79"
    for network in info.networks.values():
        runs = {one["run"]: one for one in network.ancestors}
        named = {
            name
            for text in (network.training["weights"], *(one["weights"] for one in runs.values()))
            for name in RUN_NAME.findall(text)
        }
        assert named == set(runs), "every run that is named as a start is described"
        if not runs:
            assert network.training["weights"].startswith("random weights"), "it started from nothing"
            continue
        assert "ImageNet" in list(runs.values())[-1]["weights"]
