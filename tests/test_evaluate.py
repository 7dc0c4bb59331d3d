"Evaluation against independent references, over random inputs, and in an interpreter that may import numpy alone."

import json
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix as reference_confusion
from sklearn.metrics import f1_score, log_loss

from card_classifier.bundle import softmax
from card_classifier.cards import CARDS
from card_classifier.evaluation.calibration import (
    TEMPERATURES, choose_rejection_threshold, expected_calibration_error, fit_temperature, log_softmax,
    negative_log_likelihood, reliability_bins,
)
from card_classifier.evaluation.metrics import evaluate, summary_rows, wilson_interval, write_metrics
from card_classifier.evaluation.plots import plot_confusion, plot_mistakes, plot_per_class, plot_reliability

N_CLASSES = len(CARDS)


def random_answers(seed: int, n_images: int, strength: float) -> tuple[np.ndarray, np.ndarray, list[str]]:
    "Logits that lean towards the right answer by `strength`, targets and paths."
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, N_CLASSES, n_images)
    logits = generator.normal(0, 2, (n_images, N_CLASSES)) + strength * np.eye(N_CLASSES)[targets]
    return logits, targets, [f"test/{index}.jpg" for index in range(n_images)]


answers = st.builds(random_answers, st.integers(0, 2**32 - 1), st.integers(1, 120), st.floats(0, 12))


@given(n_total=st.integers(1, 10_000), data=st.data())
def test_wilson_interval_solves_its_equation(n_total, data):
    n_correct = data.draw(st.integers(0, n_total))
    low, high = wilson_interval(n_correct, n_total)
    share = n_correct / n_total
    assert 0 <= low <= share <= high <= 1
    # Its ends are where the score test just rejects: |share - end| = z * sqrt(end * (1 - end) / n)
    for end in (low, high):
        assert abs(share - end) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / n_total), abs=1e-9)
    opposite_low, opposite_high = wilson_interval(n_total - n_correct, n_total)
    assert (opposite_low, opposite_high) == pytest.approx((1 - high, 1 - low))


@settings(deadline=None, max_examples=40)
@given(answers)
def test_metrics_agree_with_scikit_learn_and_with_each_other(case):
    logits, targets, paths = case
    metrics = evaluate(logits, targets, paths, temperature=1.3)
    predicted = logits.argmax(axis=1)
    assert metrics["macro_f1"] == pytest.approx(f1_score(targets, predicted, average="macro", zero_division=0))
    assert metrics["confusion"] == reference_confusion(targets, predicted, labels=range(N_CLASSES)).tolist()
    assert metrics["nll"] == pytest.approx(log_loss(targets, softmax(logits, 1.3), labels=range(N_CLASSES)), rel=1e-6)
    for rows in ("per_class", "per_rank", "per_suit"):
        assert sum(row["n"] for row in metrics[rows]) == metrics["n"]
        assert sum(row["n_correct"] for row in metrics[rows]) == metrics["n_correct"]
    assert all(row["n_correct"] <= row["n_part_correct"] <= row["n"] for row in metrics["per_rank"] + metrics["per_suit"])
    assert sum(one["n"] for one in metrics["calibration"]) == metrics["n"]
    assert len(metrics["mistakes"]) == metrics["n"] - metrics["n_correct"]
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert len(summary_rows(metrics)) > 0


@settings(deadline=None, max_examples=25)
@given(answers, st.data())
def test_leaving_leaking_images_out_is_the_same_as_never_having_had_them(case, data):
    logits, targets, paths = case
    leaking = data.draw(st.sets(st.sampled_from(paths), max_size=len(paths) - 1))
    kept = [index for index, path in enumerate(paths) if path not in leaking]
    without = evaluate(logits, targets, paths, 1.0, leaking)["without_leaking"]
    alone = evaluate(logits[kept], targets[kept], [paths[index] for index in kept])
    assert without == {name: alone[name] for name in without}


@settings(deadline=None, max_examples=25)
@given(answers, st.floats(0.2, 5))
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
    logits, targets, _ = random_answers(3, 400, 5)
    grid = np.exp(np.linspace(np.log(0.1), np.log(10), 4001))
    losses = [negative_log_likelihood(logits, targets, one) for one in grid]
    assert fit_temperature(logits, targets) == pytest.approx(grid[int(np.argmin(losses))], rel=2e-3)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 30))
def test_calibration_error_is_bounded_and_its_bins_hold_what_they_say(pairs, n_bins):
    probability, correct = (np.array(values) for values in zip(*pairs, strict=True))
    assert 0 <= expected_calibration_error(probability, correct, n_bins) <= 1
    for one in reliability_bins(probability, correct, n_bins):
        if one["n"]:
            assert one["low"] - 1e-9 <= one["confidence"] <= one["high"] + 1e-9


@given(st.lists(st.floats(0, 1), min_size=1, max_size=300), st.floats(0, 0.5))
def test_the_threshold_never_rejects_more_than_allowed(probability, max_rejected):
    threshold = choose_rejection_threshold(np.array(probability), max_rejected)
    assert (np.array(probability) < threshold).sum() <= max_rejected * len(probability)


def test_log_softmax_survives_what_overflows():
    logits = np.array([[0.0, 1e5, -1e5]])
    assert np.isfinite(log_softmax(logits, 0.05)).all()


def test_metrics_are_replaced_whole_while_somebody_reads(tmp_path):
    file = write_metrics(tmp_path, {"round": 0, "rows": list(range(20_000))})
    done, seen = threading.Event(), set()

    def read():
        while not done.is_set():
            seen.add(json.loads(file.read_text(encoding="utf-8"))["round"])

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 15):
        write_metrics(file, {"round": number, "rows": list(range(20_000))})
    done.set()
    reader.join()
    assert json.loads(file.read_text(encoding="utf-8"))["round"] == 14
    assert seen <= set(range(15))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize("strength", [0, 50])
def test_figures_can_be_drawn_when_all_is_wrong_or_right(strength, tmp_path):
    logits, targets, paths = random_answers(1, 3, strength)
    if not strength:
        logits[np.arange(3), targets] = -9
    metrics = evaluate(logits, targets, paths)
    assert metrics["n_correct"] == (3 if strength else 0)
    images = [np.zeros((8, 8, 3), dtype=np.uint8)] * len(metrics["mistakes"])
    figures = [plot(metrics) for plot in (plot_confusion, plot_reliability, plot_per_class)]
    for number, figure in enumerate([*figures, plot_mistakes(metrics["mistakes"], images)]):
        figure.savefig(tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 0


def test_numbers_need_numpy_and_nothing_heavier():
    code = """
        import sys
        for name in ("torch", "fastai", "pandas", "matplotlib", "cv2", "sklearn", "scipy"): sys.modules[name] = None
        import numpy as np
        from card_classifier.evaluation.metrics import evaluate, fit_temperature, summary_rows
        logits, targets = 9 * np.eye(53), np.arange(53)
        metrics = evaluate(logits, targets, [str(target) for target in targets], fit_temperature(logits, targets))
        print(summary_rows(metrics)[0][1])
    """
    answer = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "53 of 53 images"
