"Metrics against independent references, over random inputs, and in an interpreter that may import numpy alone."

import json
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_logits import N_CLASSES, cases
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import confusion_matrix as reference_confusion
from sklearn.metrics import f1_score, log_loss

from card_classifier.bundle import softmax
from card_classifier.evaluation.metrics import (
    NO_ANSWER, detection_metrics, evaluate, evaluate_whole_way, expected_calibration_error, log_softmax,
    match_detections, photo_row, reliability_bins, summary_rows, whole_way_rows, wilson_interval, write_metrics,
)


@given(n_total=st.integers(1, 10_000), data=st.data())
def test_wilson_interval_solves_its_equation(n_total, data):
    n_correct = data.draw(st.integers(0, n_total))
    low, high = wilson_interval(n_correct, n_total)
    ratio = n_correct / n_total
    assert 0 <= low <= ratio <= high <= 1
    # Its ends are where the score test just rejects: |ratio - end| = z * sqrt(end * (1 - end) / n)
    for end in (low, high):
        assert abs(ratio - end) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / n_total), abs=1e-9)
    opposite_low, opposite_high = wilson_interval(n_total - n_correct, n_total)
    assert (opposite_low, opposite_high) == pytest.approx((1 - high, 1 - low))


@settings(deadline=None, max_examples=40)
@given(cases)
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
    groups = metrics["per_rank"] + metrics["per_suit"]
    assert all(row["n_correct"] <= row["n_group_correct"] <= row["n"] for row in groups)
    assert sum(one["n"] for one in metrics["calibration"]) == metrics["n"]
    assert len(metrics["mistakes"]) == metrics["n"] - metrics["n_correct"]
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert summary_rows(metrics)[0] == ("right", f"{metrics['n_correct']:,} of {metrics['n']:,} images")


@settings(deadline=None, max_examples=25)
@given(cases, st.data())
def test_leaving_leaking_images_out_is_the_same_as_never_having_had_them(case, data):
    logits, targets, paths = case
    leaking = data.draw(st.sets(st.sampled_from(paths), max_size=len(paths) - 1))
    kept = [index for index, path in enumerate(paths) if path not in leaking]
    without = evaluate(logits, targets, paths, 1.0, leaking)["without_leaking"]
    alone = evaluate(logits[kept], targets[kept], [paths[index] for index in kept])
    assert without == {name: alone[name] for name in without}


@settings(deadline=None, max_examples=40)
@given(cases, st.floats(0, 1), st.data())
def test_the_whole_way_loses_what_is_rejected_and_nothing_else(case, threshold, data):
    logits, targets, paths = case
    probabilities = softmax(logits)
    predicted, probability = probabilities.argmax(axis=1), probabilities.max(axis=1)
    is_rejected = probability < threshold
    unreadable = data.draw(st.sets(st.sampled_from(range(len(paths)))))
    for index in unreadable:
        predicted[index], probability[index], is_rejected[index] = NO_ANSWER, 0, True
    metrics = evaluate_whole_way(predicted, probability, is_rejected, targets, paths)
    by_hand = sum(predicted[index] == targets[index] and not is_rejected[index] for index in range(len(paths)))
    assert (metrics["n"], metrics["n_correct"], metrics["n_rejected"]) == (len(paths), by_hand, is_rejected.sum())
    assert len(metrics["mistakes"]) == metrics["n"] - metrics["n_correct"]
    unanswered = {one["path"] for one in metrics["mistakes"] if one["predicted"] is None}
    assert unanswered == {paths[index] for index in unreadable}
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert whole_way_rows(metrics)[0][1] == f"{by_hand} of {len(paths)} files"


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 7), st.integers(0, 7), st.floats(0.3, 0.7))
def test_matches_are_one_to_one_overlap_enough_and_leave_no_free_pair(seed, n_cards, n_detections, threshold):
    generator = np.random.default_rng(seed)
    iou, scores = generator.random((n_cards, n_detections)), generator.random(n_detections)
    matches = match_detections(iou, scores, threshold)
    found = matches[matches >= 0]
    assert len(set(found)) == len(found)
    assert all(iou[card, detection] >= threshold for card, detection in enumerate(matches) if detection >= 0)
    is_used = np.isin(np.arange(n_detections), found)
    is_enough = iou >= threshold
    assert not is_enough[np.ix_(matches < 0, ~is_used)].any()
    most = is_enough[linear_sum_assignment(is_enough, maximize=True)].sum()
    assert most / 2 <= len(found) <= most  # A greedy matching has at least half the pairs of the largest one


def test_detection_metrics_are_sums_over_photographs():
    several = photo_row("a", [0, 1, -1], [True, False, False], 4)
    rows = [several, photo_row("b", [], [], 1), photo_row("c", [0], [True], 1)]
    metrics = detection_metrics(rows)
    assert (metrics["n"], metrics["n_found"], metrics["n_correct"], metrics["n_false"]) == (4, 3, 2, 3)
    assert (metrics["accuracy"], metrics["recall"]["accuracy"], metrics["precision"]["accuracy"]) == (0.5, 0.75, 0.5)
    assert detection_metrics([])["accuracy"] is None


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 30))
def test_calibration_error_is_bounded_and_its_bins_hold_what_they_say(pairs, n_bins):
    probability, correct = (np.array(values) for values in zip(*pairs, strict=True))
    assert 0 <= expected_calibration_error(probability, correct, n_bins) <= 1
    for one in reliability_bins(probability, correct, n_bins):
        if one["n"]:
            assert one["low"] - 1e-9 <= one["confidence"] <= one["high"] + 1e-9


def test_log_softmax_survives_what_overflows():
    logits = np.array([[0.0, 1e5, -1e5]])
    assert np.isfinite(log_softmax(logits, 0.05)).all()


def test_metrics_are_replaced_whole_while_somebody_reads(tmp_path):
    file = write_metrics(tmp_path, {"round": 0, "rows": list(range(20_000))})
    done, seen, errors = threading.Event(), [], []

    def read():
        while not done.is_set():
            try:
                seen.append(json.loads(file.read_text(encoding="utf-8"))["round"])
            except (OSError, ValueError) as error:
                errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 15):
        write_metrics(file, {"round": number, "rows": list(range(20_000))})
    done.set()
    reader.join()
    assert json.loads(file.read_text(encoding="utf-8"))["round"] == 14
    assert errors == [] and seen == sorted(seen) and len(seen) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_numbers_need_numpy_and_nothing_heavier():
    code = """
        import sys
        for name in ("torch", "fastai", "pandas", "matplotlib", "cv2", "sklearn", "scipy"):
            sys.modules[name] = None
        import numpy as np
        from card_classifier.evaluation.calibration import fit_temperature
        from card_classifier.evaluation.metrics import evaluate, summary_rows
        logits, targets = 9 * np.eye(53), np.arange(53)
        metrics = evaluate(logits, targets, [str(target) for target in targets], fit_temperature(logits, targets))
        print(summary_rows(metrics)[0][1])
    """
    answer = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "53 of 53 images"
