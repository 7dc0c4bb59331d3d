"Card names in every spelling, and arbitrary text, through hypothesis."

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from card_classifier.cards import CARDS, CLASS_NAMES, Card, CardNameError, Rank, Suit

cards = st.sampled_from(CARDS)
suited_cards = st.sampled_from([card for card in CARDS if card.suit])
LONGEST_MESSAGE = 1000  # characters; lone surrogates print as ten characters each
blanks = st.text(" \t\n\u00a0\u3000", max_size=3)

RANKS = {
    Rank.ACE: ["ace", "a", "1", "one"],
    Rank.TWO: ["two", "2", "deuce"],
    Rank.TEN: ["ten", "10", "t"],
    Rank.JACK: ["jack", "j"],
    Rank.QUEEN: ["queen", "q"],
    Rank.KING: ["king", "k"],
}
SUITS = {
    Suit.CLUBS: ["clubs", "club", "c", "♣", "♧", "♣\ufe0f"],
    Suit.DIAMONDS: ["diamonds", "diamond", "d", "♦", "♢", "♦\ufe0f"],
    Suit.HEARTS: ["hearts", "heart", "h", "♥", "♡", "♥\ufe0f", "❤\ufe0f"],
    Suit.SPADES: ["spades", "spade", "s", "♠", "♤", "♠\ufe0f"],
}


@st.composite
def spelled_cards(draw) -> tuple[str, Card]:
    "A card and one of the ways that people write it, in random case."
    card = draw(suited_cards)
    rank = draw(st.sampled_from(RANKS.get(card.rank, [card.rank.value, card.rank.symbol])))
    suit = draw(st.sampled_from(SUITS[card.suit]))
    if draw(st.booleans()):
        text = rank + draw(st.sampled_from([" of ", "-of-", "_of_", "OF", " ", "-", "_", "", ", "])) + suit
    else:
        text = suit + draw(st.sampled_from([" ", "-", "_", "", ": "])) + rank
    upper = draw(st.lists(st.booleans(), min_size=len(text), max_size=len(text)))
    mixed = "".join(letter.upper() if raised else letter for letter, raised in zip(text, upper, strict=True))
    return draw(blanks) + draw(st.sampled_from(["", "the ", "The_"])) + mixed + draw(blanks), card


@given(spelled_cards())
def test_every_spelling_is_read(spelled):
    text, card = spelled
    assert Card.parse(text) == card


@given(cards, blanks, st.sampled_from([str.upper, str.lower, str.title, str.swapcase]))
def test_what_is_printed_is_read_back(card, blank, change_case):
    for printed in (card.class_name, card.short_name, card.unicode):
        assert Card.parse(blank + change_case(printed) + blank) == card
    assert Card.from_index(card.index) == card
    assert pickle.loads(pickle.dumps(card)) == card


@given(st.text())
def test_any_text_is_a_card_or_a_named_error(text):
    try:
        card = Card.parse(text)
    except CardNameError as error:
        assert error.nearest in CARDS
        assert error.nearest.class_name in str(error)
        assert len(str(error)) < LONGEST_MESSAGE
    else:
        assert card in CARDS


@given(st.text("acdhjkqst1234567890 of♠♥-", max_size=8))
def test_near_misses_are_errors_or_cards(text):
    try:
        card = Card.parse(text)
    except CardNameError as error:
        assert error.nearest in CARDS
    else:
        assert Card.parse(card.short_name) == card


@given(st.text(st.characters(min_codepoint=0x1F0A0, max_codepoint=0x1F0FF), min_size=1, max_size=1))
def test_the_unicode_block_holds_our_cards_and_named_others(sign):
    try:
        card = Card.parse(sign + "\ufe0f")
    except CardNameError as error:
        assert error.nearest.class_name in str(error)
    else:
        assert card.unicode == sign or card.rank is Rank.JOKER


def test_every_name_with_a_letter_missing_is_recognised_as_its_card():
    for card in CARDS:
        for position in range(len(card.class_name)):
            damaged = card.class_name[:position] + card.class_name[position + 1 :]
            try:
                understood = Card.parse(damaged)
            except CardNameError as error:
                understood = error.nearest
            assert understood == card, damaged


@pytest.mark.parametrize(
    "knight, queen", [("🂬", "queen of spades"), ("🂼", "queen of hearts"), ("🃌", "queen of diamonds")]
)
def test_knights_are_refused_by_name(knight, queen):
    with pytest.raises(CardNameError, match=f"knight of .* only tarot decks have; the nearest card is '{queen}'"):
        Card.parse(knight)


@pytest.mark.parametrize("no_text", [None, 7, b"ace of spades", Card(Rank.JOKER)])
def test_what_is_no_text_is_a_type_error(no_text):
    with pytest.raises(TypeError, match="a card is read from text"):
        Card.parse(no_text)


def test_an_error_survives_pickling():
    with pytest.raises(CardNameError) as caught:
        Card.parse("ace of clovers")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value) and str(copy.nearest) == "ace of clubs"


def test_class_names_are_sorted_and_complete():
    assert list(CLASS_NAMES) == sorted(CLASS_NAMES)
    assert [len(CLASS_NAMES), len(set(CLASS_NAMES))] == [53, 53]
