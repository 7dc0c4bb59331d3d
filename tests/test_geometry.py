"Areas, shapes and intersections of quadrilaterals, against OpenCV's."
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from card_classifier.geometry import (
    homography,
    intersection_area,
    intersection_over_minimum,
    intersection_over_union,
    is_card_shaped,
    is_convex,
    polygon_area,
)

UNIT = np.float64([(-30, -42), (30, -42), (30, 42), (-30, 42)])
numbers = st.floats(-80, 80)


@st.composite
def quadrilaterals(draw):
    "A card turned, tilted and moved; always convex and clockwise."
    angle, slant = draw(st.floats(0, 6.3)), draw(st.floats(-0.3, 0.3))
    corners = UNIT * (1 + slant * UNIT[:, 1:] / 42)
    turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    return corners @ turn * draw(st.floats(0.3, 3)) + (draw(numbers), draw(numbers))


@given(quadrilaterals(), quadrilaterals())
def test_intersection_is_what_opencv_computes(first, second):
    expected, _ = cv2.intersectConvexConvex(np.float32(first), np.float32(second))
    assert intersection_area(first, second) == pytest.approx(expected, abs=0.5 + 1e-3 * expected)
    assert polygon_area(first) == pytest.approx(cv2.contourArea(np.float32(first)), rel=1e-4)


@given(quadrilaterals(), quadrilaterals())
def test_ratios_do_not_depend_on_order_start_or_direction(first, second):
    for measure in (intersection_over_union, intersection_over_minimum):
        ratio = measure(first, second)
        assert -1e-9 <= ratio <= 1 + 1e-9
        turned = np.roll(first, 1, axis=0)
        for one, other in ((second, first), (turned, second), (first, second[::-1]), (first[::-1], second)):
            assert measure(one, other) == pytest.approx(ratio, abs=1e-6)
    assert intersection_over_union(first, second) <= intersection_over_minimum(first, second) + 1e-9


@given(quadrilaterals(), st.integers(0, 3))
def test_a_card_in_any_turn_has_a_cards_shape_and_its_mirror_image_has_not(corners, start):
    assert is_convex(np.roll(corners, start, axis=0)) and is_card_shaped(np.roll(corners, start, axis=0))
    assert not is_convex(corners[::-1]) and not is_card_shaped(corners[::-1])


@given(st.lists(st.tuples(numbers, numbers), min_size=4, max_size=4).map(np.float64))
def test_any_four_points_have_an_answer(corners):
    assert 0 <= intersection_over_union(corners, UNIT) < np.inf
    assert 0 <= intersection_over_minimum(UNIT, corners) < np.inf
    assert is_card_shaped(corners) in (True, False)


@given(quadrilaterals(), quadrilaterals())
def test_homography_takes_corners_to_corners(first, second):
    expected = cv2.getPerspectiveTransform(np.float32(first), np.float32(second))
    a, b, c, d, e, f, g, h = homography(first, second)
    moved = cv2.perspectiveTransform(first[None], np.array([(a, b, c), (d, e, f), (g, h, 1)]))[0]
    assert np.allclose(moved, second, atol=1e-3)
    assert np.allclose(cv2.perspectiveTransform(first[None], expected)[0], second, atol=0.05)
