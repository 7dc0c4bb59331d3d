"Photos as people take them, through the released bundle: cards are detected, read, and told where they lie."

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from card_classifier.cards import Card
from card_classifier.render.styles import random_style
from card_classifier.render.scenes import render_scene
from card_classifier.recognition.detection import MAX_CARDS, decode_detections, detect_cards
from card_classifier.recognition.engine import ENGINES
from card_classifier.recognition.predictor import Predictor
from card_classifier.geometry import intersection_over_union

NAMES = ("ace of spades", "seven of diamonds", "king of hearts", "ten of clubs", "queen of spades")


@pytest.fixture(scope="module")
def released():
    predictor = Predictor()
    assert predictor.detector is not None, "the released bundle has a detector"
    return predictor


def scene(seed, names, table="felt", height=900, width=1200, **more):
    return render_scene(
        [Card.parse(name) for name in names],
        random_style(12),
        np.random.default_rng(seed),
        height,
        width,
        table_kind=table,
        tilt=0.5,
        **more,
    )


def jpeg(image, orientation=None):
    buffer, exif = io.BytesIO(), Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(image).save(buffer, "JPEG", quality=92, exif=exif)
    return buffer.getvalue()


def test_every_card_is_found_where_it_lies_and_read(released):
    right = total = 0
    for seed in range(6):
        photo = scene(seed, NAMES[:3], table=("felt", "wood", "cloth")[seed % 3])
        answer = released.predict(photo.image)
        places = [
            (card, np.array(card.corners) * (1200, 900))
            for card in answer.cards
            if card.corners and not card.is_rejected
        ]
        for card, corners in zip(photo.cards, photo.corners, strict=True):
            total += 1
            right += any(intersection_over_union(corners, place) > 0.6 and said.card == card for said, place in places)
    assert right >= 0.8 * total, f"{right} of {total}"


def test_the_answer_speaks_of_the_largest_card_that_could_be_read(released):
    answer = released.predict(scene(3, NAMES[:4]).image)
    assert len(answer.cards) > 1
    assert (answer.card, answer.probability, answer.is_rejected) == (
        answer.cards[0].card,
        answer.cards[0].probability,
        answer.cards[0].is_rejected,
    )
    readable = [card for card in answer.cards if not card.is_rejected]
    areas = [cv2.contourArea(np.float32(card.corners) * np.float32((1200, 900))) for card in readable]
    assert areas == sorted(areas, reverse=True)
    assert answer.cards[: len(readable)] == readable


def test_of_one_deck_a_card_is_named_once_in_many_photos_too(released):
    photo = scene(3, [NAMES[0]] * 2).image
    plain, dealt = (released.predict_batch([photo], is_one_deck=one_deck)[0] for one_deck in (False, True))
    named = [[card.card.class_name for card in answer.cards if not card.is_rejected] for answer in (plain, dealt)]
    assert named[0].count(NAMES[0]) == 2 and named[1].count(NAMES[0]) == 1


def test_a_turned_photograph_has_the_same_cards(released):
    "Cameras store how they were held beside the pixels."
    photo = scene(5, NAMES[:2]).image
    upright = released.predict(jpeg(photo))
    turned = released.predict(jpeg(np.ascontiguousarray(np.rot90(photo)), orientation=6))
    assert (
        {card.card for card in upright.cards if not card.is_rejected}
        == {card.card for card in turned.cards if not card.is_rejected}
        != set()
    )


def test_a_large_photograph_is_answered_like_a_small_one(released):
    "12 megapixels are decoded at a reduced size; corners are shares, so they don't care."
    photo = scene(8, NAMES[:2])
    large = cv2.resize(photo.image, (4000, 3000), interpolation=cv2.INTER_CUBIC)
    small_answer, large_answer = released.predict(photo.image), released.predict(jpeg(large))
    assert [card.card for card in large_answer.cards] == [card.card for card in small_answer.cards]
    for one, other in zip(small_answer.cards, large_answer.cards, strict=True):
        assert np.allclose(one.corners, other.corners, atol=0.02)


def test_engines_find_the_same(released):
    photo = scene(9, NAMES).image
    other = Predictor(engine=ENGINES[1])
    network = released.info.detector
    first, second = (
        detect_cards(one.detector, network.input_size, network.thresholds["detection"], photo)
        for one in (released, other)
    )
    assert len(first) == len(second) > 0
    for one, two in zip(first, second, strict=True):
        diagonal = np.linalg.norm(two.corners[2] - two.corners[0])
        assert np.abs(one.corners - two.corners).max() < 0.01 * diagonal, (
            "bfloat16, which only one of the engines computes in, moves a corner by less than a hundredth of the card"
        )


@pytest.mark.parametrize("kind", ["felt", "wood", "plain", "newspaper", "carpet"])
def test_an_empty_table_is_no_card(released, kind):
    answer = released.predict(scene(11, (), table=kind).image)
    assert answer.is_rejected and answer.rejection_reason


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (3000, 2), (7, 7)])
def test_odd_shapes_are_answered(released, shape):
    answer = released.predict(np.full((*shape, 3), 90, np.uint8))
    assert len(answer.cards) >= 1


def test_noise_does_not_drown_the_service(released):
    "A detector that sees cards everywhere must not make thousands of crops."
    n = 80
    places = np.stack(np.meshgrid(np.arange(n), np.arange(n)), axis=-1)[:, :, None] * 8.0
    corners = (places + np.float32([(0, 0), (10, 0), (10, 14), (0, 14)])).astype(np.float32)
    scores = np.random.default_rng(1).uniform(0.5, 1, (n, n)).astype(np.float32)
    assert len(decode_detections(scores, corners, 0.4)) == MAX_CARDS
    broken = np.full_like(corners, np.nan)
    assert decode_detections(scores, broken, 0.4) == []
    assert detect_cards(lambda _: (scores[None], broken[None]), 640, 0.4, np.zeros((20, 30, 3), np.uint8)) == []


def test_a_small_card_is_found_in_a_tile(released):
    "Cards on a hundredth of the picture: too small for one run over all of it."
    n_found = 0
    for seed in range(4):
        near = scene(seed, NAMES[:2])
        far = np.full((2700, 3600, 3), 120, np.uint8)
        far[900:1800, 1200:2400] = near.image
        places = [
            np.array(card.corners) * (3600, 2700) - (1200, 900)
            for card in released.predict(far).cards
            if card.corners and not card.is_rejected
        ]
        n_found += sum(
            any(intersection_over_union(corners, place) > 0.5 for place in places) for corners in near.corners
        )
    assert n_found >= 6, f"{n_found} of 8"
