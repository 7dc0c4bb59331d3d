"Both tasks fill in everything that the learner and the training recipe ask of a task."
import inspect

import pytest

from card_classifier.training.classifier import Classifier
from card_classifier.training.detector import Detector
from card_classifier.training.learner import Task

ASKED = sorted(
    name
    for name in vars(Task)
    if (inspect.isfunction(getattr(Task, name)) or inspect.ismethod(getattr(Task, name))) and not name.startswith("__")
    and "NotImplementedError" in inspect.getsource(getattr(Task, name))
)


@pytest.mark.parametrize("task", [Classifier, Detector])
def test_a_task_leaves_nothing_open(task):
    assert len(ASKED) >= 14
    assert [name for name in ASKED if name not in vars(task)] == []
