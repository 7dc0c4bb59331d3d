"The pipeline of dvc.yaml and what it says about the code."

from pathlib import Path

import yaml

from card_classifier.lifecycle.release import TRAINING_CODE

ROOT = Path(__file__).resolve().parent.parent


def test_dvc_watches_the_code_that_a_run_depends_on():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    watched = set(stages["train"]["deps"])
    assert watched >= set(TRAINING_CODE)
    for name in TRAINING_CODE:
        assert (ROOT / name).exists(), name
