"Corruptions of the library, made repeatable and without a trace in NumPy's global generator."

import hashlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from card_classifier.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt, corruption_metrics, count_correct


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_keeps_any_shape_and_its_input(name):
    image = np.random.default_rng(1).integers(0, 256, (45, 70, 3), dtype=np.uint8)
    untouched = image.copy()
    for severity in SEVERITIES:
        corrupted = corrupt(image, name, severity, seed=3)
        assert (corrupted.shape, corrupted.dtype) == (image.shape, np.uint8)
    assert (image == untouched).all()


def test_the_same_seed_gives_the_same_pixels_in_another_process():
    code = """
        import hashlib
        import numpy as np
        from card_classifier.evaluation.corruptions import CORRUPTIONS, corrupt
        image = (np.indices((40, 40, 3)).sum(axis=0) * 2).astype(np.uint8)
        pixels = b"".join(corrupt(image, name, 2, seed=8).tobytes() for name in CORRUPTIONS)
        print(hashlib.sha256(pixels).hexdigest())
    """
    run = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    there = subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    image = (np.indices((40, 40, 3)).sum(axis=0) * 2).astype(np.uint8)
    pixels = b"".join(corrupt(image, name, 2, seed=8).tobytes() for name in CORRUPTIONS)
    assert there == hashlib.sha256(pixels).hexdigest()


def test_without_the_library_the_message_says_what_to_install():
    code = """
        import sys
        sys.modules["imagecorruptions"] = None
        import numpy as np
        from card_classifier.evaluation.corruptions import corrupt
        try:
            corrupt(np.zeros((40, 40, 3), np.uint8), "fog", 1)
        except ImportError as error:
            print(error)
    """
    answer = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert "pip install 'card_classifier[dev]'" in answer.stdout


def test_every_image_has_a_seed_of_its_own():
    seen = []
    images = [np.full((40, 40, 3), 128, np.uint8)] * 3

    def predict(corrupted):
        seen.extend(image.tobytes() for image in corrupted)
        return [0] * len(corrupted)

    assert count_correct(images, np.zeros(3), predict, ["gaussian_noise"]) == {"gaussian_noise": [3] * 5}
    assert len(set(seen)) == 15


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(CORRUPTIONS), st.lists(st.integers(0, 50), min_size=5, max_size=5), min_size=1))
def test_the_mean_lies_between_the_worst_and_the_best_corruption(counts):
    metrics = corruption_metrics(counts, n_clean=40, n_images=50)
    by_corruption = metrics["by_corruption"].values()
    assert min(by_corruption) - 1e-9 <= metrics["mean"] <= max(by_corruption) + 1e-9
    assert metrics["relative"] == pytest.approx(metrics["mean"] / 0.8)
