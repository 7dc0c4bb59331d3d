"Every task fills in everything that the learner and the training recipe ask of a task."
import inspect

import pytest

from card_classifier.training.learner import Task
from card_classifier.training.tasks import TASKS

ASKED = sorted(
    name
    for name in vars(Task)
    if (inspect.isfunction(getattr(Task, name)) or inspect.ismethod(getattr(Task, name))) and not name.startswith("__")
    and "NotImplementedError" in inspect.getsource(getattr(Task, name))
)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_task_leaves_nothing_open(task):
    assert len(ASKED) >= 14
    methods = {name: inspect.getattr_static(task, name) for name in dir(task) if not name.startswith("_")}
    open_methods = [
        name for name, method in methods.items()
        if inspect.isfunction(code := getattr(method, "__func__", method))
        and "NotImplementedError" in inspect.getsource(code)
    ]
    assert open_methods == []
    assert set(ASKED) <= set(methods)
