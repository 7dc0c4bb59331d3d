"Random logits for the tests of evaluation."
import numpy as np
from hypothesis import strategies as st

from card_classifier.cards import CARDS

N_CLASSES = len(CARDS)


def random_logits(seed: int, n_images: int, strength: float) -> tuple[np.ndarray, np.ndarray, list[str]]:
    "Logits that lean towards the target by `strength`, targets and paths."
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, N_CLASSES, n_images)
    logits = generator.normal(0, 2, (n_images, N_CLASSES)) + strength * np.eye(N_CLASSES)[targets]
    return logits, targets, [f"test/{index}.jpg" for index in range(n_images)]


cases = st.builds(random_logits, st.integers(0, 2**32 - 1), st.integers(1, 120), st.floats(0, 12))
