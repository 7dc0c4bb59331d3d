"The fitted temperature and the rejection threshold, over random inputs and against a plain search."

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_logits import cases, random_logits

from card_classifier.bundle import softmax
from card_classifier.evaluation.calibration import TEMPERATURES, choose_rejection_threshold, fit_temperature
from card_classifier.evaluation.metrics import negative_log_likelihood


@settings(deadline=None, max_examples=25)
@given(cases, st.floats(0.2, 5))
def test_the_fitted_temperature_beats_every_other_that_is_allowed(case, other):
    logits, targets, _ = case
    temperature = fit_temperature(logits, targets)
    assert TEMPERATURES[0] <= temperature <= TEMPERATURES[1]
    n_images = len(targets)
    claims_too_much = softmax(logits, other).max(axis=1).mean() > (n_images + 1) / (n_images + 2)
    if not claims_too_much:
        best = negative_log_likelihood(logits, targets, temperature)
        assert best <= negative_log_likelihood(logits, targets, other) + 1e-9


def test_the_fitted_temperature_is_that_of_a_plain_search():
    logits, targets, _ = random_logits(3, 400, 5)
    grid = np.exp(np.linspace(np.log(0.1), np.log(10), 4001))
    losses = [negative_log_likelihood(logits, targets, one) for one in grid]
    assert fit_temperature(logits, targets) == pytest.approx(grid[int(np.argmin(losses))], rel=2e-3)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=300), st.floats(0, 0.5))
def test_the_threshold_never_rejects_more_than_allowed(probability, max_rejected):
    threshold = choose_rejection_threshold(np.array(probability), max_rejected)
    assert (np.array(probability) < threshold).sum() <= max_rejected * len(probability)
