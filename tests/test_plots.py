"Figures of evaluations that have nothing, or everything, to show."

import numpy as np
import pytest
from random_logits import random_logits

from card_classifier.evaluation.metrics import evaluate
from card_classifier.evaluation.plots import plot_confusion, plot_mistakes, plot_per_class, plot_reliability


@pytest.mark.parametrize("strength", [0, 50])
def test_figures_can_be_drawn_when_all_is_wrong_or_right(strength, tmp_path):
    logits, targets, paths = random_logits(1, 3, strength)
    if not strength:
        logits[np.arange(3), targets] = -9
    metrics = evaluate(logits, targets, paths)
    assert metrics["n_correct"] == (3 if strength else 0)
    images = [np.zeros((8, 8, 3), dtype=np.uint8)] * len(metrics["mistakes"])
    figures = [plot(metrics) for plot in (plot_confusion, plot_reliability, plot_per_class)]
    for number, figure in enumerate([*figures, plot_mistakes(metrics["mistakes"], images)]):
        figure.savefig(tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 0
