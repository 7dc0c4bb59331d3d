"Pictures that nobody asked for: mirrored, cut, tiny, huge, on screens and ties, two decks, two hundred cards, backs."

import io
import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageOps

from card_classifier.bundle import released_bundle
from card_classifier.cards import Card
from card_classifier.images import decode_image
from card_classifier.recognition.detection import MAX_CARDS
from card_classifier.recognition.predictor import Predictor
from card_classifier.render.backgrounds import table
from card_classifier.render.faces import render_back, render_face
from card_classifier.render.games import game_card
from card_classifier.render.photograph import lay_card, rectangle_at
from card_classifier.render.styles import random_style

EXAMPLES = released_bundle().parent / "demo" / "examples"
SIX = {Card.parse(name) for name in ("9H", "7S", "AS", "KD", "QD", "JC")}
DECKS = [random_style(12), random_style(31)]


@pytest.fixture(scope="module")
def released():
    return Predictor()


def lay(faces, places, height, width, ground=None):
    "Faces at places (x, y, length of the card, angle) in a picture."
    picture = table(np.random.default_rng(2), height, width, "felt") if ground is None else ground.copy()
    for face, (x, y, length, angle) in zip(faces, places, strict=True):
        lay_card(picture, face, rectangle_at(np.array([x, y]), length / 1.4, length, angle), 0.3, 0.01)
    return np.ascontiguousarray(picture)


def faces_of(names, style=DECKS[0]):
    return [render_face(Card.parse(name), style) for name in names.split()]


def named(answer, at_least=0.0):
    return Counter(card.card for card in answer.cards if not card.is_rejected and card.probability >= at_least)


def wrongly(answer, names):
    "How many cards are named surely that are not there."
    return (named(answer, 0.9) - Counter(map(Card.parse, names.split()))).total()


def test_a_mirror_image_is_read_and_not_refused(released):
    "Front cameras show and sometimes keep what a mirror would. Most cards look nearly the same in it, not all."
    photo = Image.fromarray(decode_image(EXAMPLES / "six-cards.webp"))
    answer = released.predict(ImageOps.mirror(photo))
    assert len(set(named(answer)) & SIX) >= 4


def test_two_decks_in_one_picture(released):
    "Equal cards of two decks are two cards, unless all are said to be from one deck."
    faces = [face for style in DECKS for face in faces_of("AS 7D", style)]
    places = [(200, 240, 330, 0.1), (520, 250, 330, -0.2), (840, 240, 330, 0.15), (1160, 250, 330, -0.1)]
    photo = lay(faces, places, 500, 1360)
    assert named(released.predict(photo)) == {Card.parse("AS"): 2, Card.parse("7D"): 2}
    once = named(released.predict(photo, is_one_deck=True))
    assert max(once.values()) == 1, "none but the joker can be there twice"


@pytest.mark.parametrize("size", [(60, 80), (80, 60)])
def test_a_thumbnail_is_answered_and_not_wrongly(released, size):
    photo = Image.fromarray(lay(faces_of("KH"), [(300, 400, 600, 0.1)], 800, 600)).resize(size)
    answer = released.predict(photo)
    assert len(answer.cards) == 1 and (answer.is_rejected or answer.card == Card.parse("KH"))


def test_a_card_whose_index_the_frame_cuts(released):
    "A cut index may be taken for another one, but not surely."
    photo = lay(faces_of("8C"), [(420, 400, 560, 0.0)], 800, 900)
    for cut in (photo[160:, 250:], photo[:, 320:], photo[330:]):  # Through its left upper index, and more and more
        assert not wrongly(released.predict(np.ascontiguousarray(cut)), "8C")


def test_a_fan_of_backs_is_no_hand(released):
    back, places = render_back(DECKS[1]), []
    for angle in np.linspace(-0.6, 0.6, 9):
        places.append((600 + 520 * math.sin(angle), 900 - 520 * math.cos(angle), 420, angle))
    answer = released.predict(lay([back] * 9, places, 900, 1200))
    assert answer.is_rejected and not named(answer)


def in_perspective(picture, corners, ground):
    "A flat picture somewhere in another one."
    height, width = picture.shape[:2]
    sheet = np.dstack([picture, np.full((height, width), 255, np.uint8)])
    whole = ground.copy()
    lay_card(whole, sheet, np.float64(corners), 0.4, 0.02)
    return whole


def test_a_game_of_poker_on_a_screen(released):
    "Cards on a screen are cards: named rightly or not at all."
    names = "AS KD QH 10C 9D"
    places = [(110 + 150 * n, 170, 180, 0) for n in range(5)]
    board = lay(faces_of(names), places, 340, 820, np.full((340, 820, 3), 40, np.uint8))
    room = np.ascontiguousarray(table(np.random.default_rng(7), 800, 1200, "wood"))
    photo = in_perspective(board, [(150, 180), (1080, 150), (1050, 600), (180, 560)], room)
    answer = released.predict(photo)
    assert not wrongly(answer, names) and (named(answer) & Counter(map(Card.parse, names.split()))).total() >= 3


def test_a_shop_window_of_posters(released):
    "Large and small prints of cards, at an angle, between other prints."
    names, generator = "AH QS", np.random.default_rng(4)
    posters = [*faces_of(names), game_card(generator, 300, "picture"), game_card(generator, 300, "worded")]
    places = [(230, 420, 640, 0.03), (1010, 300, 300, -0.04), (640, 330, 420, 0), (1000, 680, 260, 0.02)]
    assert not wrongly(released.predict(lay(posters, places, 850, 1250, np.full((850, 1250, 3), 190, np.uint8))), names)


def test_cards_printed_on_a_tie(released):
    "A pattern of small cards: whatever is named is printed there."
    names = "AS AH"
    ground = np.full((1100, 500, 3), (30, 40, 90), np.uint8)
    places = [(100 + 150 * (n % 3), 110 + 125 * (n // 3), 78, 0.5 * (-1) ** n) for n in range(24)]
    answer = released.predict(lay(faces_of(names) * 12, places, 1100, 500, ground))
    assert set(named(answer, 0.9)) <= set(map(Card.parse, names.split()))


@pytest.mark.slow
def test_two_hundred_cards(released):
    "Ten rows of twenty: more than the detector looks at, and no reason to fail or to invent."
    deck = [f"{rank}{suit}" for suit in "SHDC" for rank in ("A", *range(2, 11), "J", "Q", "K")]
    names = " ".join(deck[n % 52] for n in range(200))
    faces = dict(zip(deck, faces_of(" ".join(deck)), strict=True))
    places = [(100 + 200 * (n % 20), 150 + 300 * (n // 20), 240, 0.0) for n in range(200)]
    answer = released.predict(lay([faces[name] for name in names.split()], places, 3000, 4000))
    assert named(answer).total() >= MAX_CARDS and wrongly(answer, names) <= 0.02 * len(answer.cards)


@pytest.mark.slow
def test_a_panorama_of_a_hundred_megapixels(released):
    small = lay(faces_of("AS 10D"), [(700, 220, 330, 0.1), (1500, 230, 330, -0.2)], 450, 2200)
    content = io.BytesIO()
    Image.fromarray(small).resize((22_000, 4_600)).save(content, "JPEG", quality=80)
    answer = released.predict(content.getvalue())
    assert set(named(answer)) == {Card.parse("AS"), Card.parse("10D")}
