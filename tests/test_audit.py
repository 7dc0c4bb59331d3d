"The audit on planted faults: which pairs count as repeats, which as contradictions, which as neither."

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageEnhance
from tiny_data import tiny_files, write_files

from card_classifier.cards import Card
from card_classifier.data.audit import CANDIDATE_CORRELATION, audit, candidate_pairs, correlation, normalised, patch_gap
from card_classifier.render.faces import render_face
from card_classifier.render.styles import random_style
from card_classifier.data.layout import scan_folder


def card(name: str, seed: int = 3, size: int = 224) -> Image.Image:
    "A rendered card on white, straight on."
    face = Image.fromarray(render_face(Card.parse(name), random_style(seed)))
    flat = Image.new("RGBA", face.size, "white")
    flat.alpha_composite(face)
    return flat.convert("RGB").resize((size, size))


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    "The image as a file."
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def audited(folder, planted: dict[str, bytes]):
    "The audit of a tiny data set with planted images."
    return audit(scan_folder(write_files(folder, tiny_files() | planted)))


QUEEN = card("queen of hearts")
DISGUISES = {
    "saved again": jpeg(QUEEN, 30),
    "smaller": jpeg(QUEEN.resize((120, 120))),
    "cropped": jpeg(QUEEN.crop((1, 1, 224, 224)).resize((224, 224))),
    "darker": jpeg(ImageEnhance.Brightness(QUEEN).enhance(0.8)),
    "turned": jpeg(QUEEN.rotate(180)),
    "a warmer light": jpeg(Image.fromarray((np.asarray(QUEEN) * (1, 0.95, 0.85)).astype(np.uint8))),
}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_test_image_is_found_in_training_however_it_was_changed(tmp_path, disguise):
    found = audited(
        tmp_path, {"test/queen of hearts/900.jpg": jpeg(QUEEN), "train/queen of hearts/900.jpg": DISGUISES[disguise]}
    )
    assert [(item.path, item.reason) for item in found.exclusions] == [("train/queen of hearts/900.jpg", "repeats")]
    assert found.leaking == ["test/queen of hearts/900.jpg"]
    assert found.contradictions == []


@pytest.mark.parametrize("disguise", ["saved again", "smaller", "turned", "a warmer light"])
def test_one_picture_under_two_labels_excludes_both(tmp_path, disguise):
    found = audited(
        tmp_path, {"train/queen of hearts/900.jpg": jpeg(QUEEN), "train/queen of spades/900.jpg": DISGUISES[disguise]}
    )
    assert {(item.path, item.reason) for item in found.exclusions} == {
        ("train/queen of hearts/900.jpg", "contradicts"), ("train/queen of spades/900.jpg", "contradicts")}


def test_another_crop_under_another_label_is_listed_but_excludes_nothing(tmp_path):
    planted = {"train/queen of hearts/900.jpg": jpeg(QUEEN), "train/queen of spades/900.jpg": DISGUISES["cropped"]}
    found = audited(tmp_path, planted)
    # One patch alone cannot tell another crop from another pip: people look at these
    assert [{pair.first, pair.second} for pair in found.look_alikes] == [set(planted)]
    assert found.exclusions == []


def test_a_contradiction_with_a_test_image_excludes_the_training_image_only(tmp_path):
    found = audited(
        tmp_path, {"test/queen of hearts/900.jpg": jpeg(QUEEN), "train/queen of spades/900.jpg": jpeg(QUEEN, 50)}
    )
    assert [(item.path, item.reason, item.other) for item in found.exclusions] == [
        ("train/queen of spades/900.jpg", "contradicts", "test/queen of hearts/900.jpg")]
    assert found.leaking == ["test/queen of hearts/900.jpg"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("three of spades", "three of clubs"),
        ("nine of hearts", "nine of diamonds"),
        ("eight of hearts", "seven of hearts"),
        ("queen of hearts", "queen of diamonds"),
        ("ace of spades", "king of spades"),
    ],
)
def test_two_cards_of_one_deck_are_no_contradiction(tmp_path, first, second):
    found = audited(
        tmp_path, {f"train/{first}/900.jpg": jpeg(card(first)), f"test/{second}/900.jpg": jpeg(card(second))}
    )
    assert found.contradictions == []
    assert found.exclusions == []


def test_identical_files_within_training_are_reported_and_kept(tmp_path):
    found = audited(tmp_path, {f"train/queen of hearts/90{number}.jpg": jpeg(QUEEN) for number in range(3)})
    assert [(pair.first[-7:], pair.second[-7:]) for pair in found.exact_duplicates] == [
        ("900.jpg", "901.jpg"),
        ("900.jpg", "902.jpg"),
    ]
    assert found.exclusions == []


def test_images_without_contrast_match_nothing(tmp_path):
    plain = {f"{split}/joker/90{shade}.jpg": jpeg(Image.new("RGB", (32, 32), (shade * 20,) * 3))
             for split in ("train", "test") for shade in range(3)}
    found = audited(tmp_path, plain)
    assert found.near_duplicates == []
    assert len(found.exact_duplicates) == 3  # the same shade in both splits is the same file
    assert len(found.exclusions) == 3


def test_what_cannot_be_decoded_is_listed_with_a_reason(tmp_path):
    planted = {"train/joker/901.jpg": b"", "train/joker/902.jpg": b"text", "train/joker/903.jpg": jpeg(QUEEN)[:2000]}
    found = audited(tmp_path, planted)
    assert [item.path for item in found.corrupt] == sorted(planted)
    assert all(item.reason for item in found.corrupt)


@given(arrays(np.uint8, (6, 6, 3)), arrays(np.uint8, (6, 6, 3)))
def test_correlation_is_a_correlation(first, second):
    value = correlation(first, second)
    assert -1 - 1e-12 <= value <= 1 + 1e-12
    assert value == correlation(second, first)
    x, y = (image.reshape(-1, 3) - image.reshape(-1, 3).mean(0) for image in (first, second))
    if x.any() and y.any():
        assert value == pytest.approx((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()), abs=1e-9)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(-2, 2), st.integers(-2, 2))
def test_patch_gap_forgives_a_small_shift(seed, down, right):
    image = np.random.default_rng(seed).integers(0, 255, (112, 112, 3), dtype=np.uint8)
    assert patch_gap(image, np.roll(image, (down, right), (0, 1))) == 0
    assert patch_gap(image, image[::-1]) > 0.4


def test_no_pair_is_lost_between_blocks():
    greys = np.random.default_rng(0).integers(0, 255, (70, 1024), dtype=np.uint8)
    greys[65], greys[33] = greys[2], greys[31, ::-1]
    expected = {(2, 65, False), (31, 33, True)}
    for block in (1, 7, 64, 1024):
        assert set(candidate_pairs(greys, None, block)) == expected
    assert (normalised(greys) @ normalised(greys).T > CANDIDATE_CORRELATION).sum() == 70 + 2


def test_threads_and_processors_do_not_change_the_result(tmp_path):
    write_files(
        tmp_path,
        tiny_files(2)
        | {"test/queen of hearts/900.jpg": jpeg(QUEEN), "train/queen of hearts/900.jpg": DISGUISES["cropped"]},
    )
    code = (
        "import json, sys; from card_classifier.data.layout import scan_folder\n"
        "from card_classifier.data.audit import audit, audit_to_dict\n"
        "print(json.dumps(audit_to_dict(audit(scan_folder(sys.argv[1])))))"
    )
    results = []
    for extra in (
        {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        {"OPENBLAS_NUM_THREADS": "4"},
        {"OPENBLAS_CORETYPE": "Haswell"},
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path], env=os.environ | extra, capture_output=True, text=True, check=True
        )
        results.append(json.loads(done.stdout))
    assert results[0] == results[1] == results[2]
    assert len(results[0]["exclusions"]) == 1
