from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from qslm.errors import TaskError
from qslm.tasks import Losses, Task, as_task, compare, interval
from qslm.tasks.fingerprint import fingerprint


class ExactMatch(Task):
    """The example of the docstring."""

    name, metric, unit = "my-set", "exact match", "sample"

    def __init__(self, samples):
        self.samples = samples

    def batches(self, split):
        return [(ids, labels) for ids, labels in self.samples[split]]

    def losses(self, model, batch):
        ids, labels = batch
        right = (model(ids).argmax(-1) == labels).double().numpy()
        return Losses(right, np.ones(len(right)), tokens=ids.numel())


def make_samples(seed):
    generator = torch.Generator().manual_seed(seed)
    batch = torch.randn(40, 6, generator=generator), torch.randint(0, 3, (40,), generator=generator)
    return {"search": [batch, batch]}


def test_two_methods_make_a_task():
    task, model = ExactMatch(make_samples(0)), nn.Linear(6, 3)
    with torch.inference_mode():
        losses = Losses.concatenate([task.losses(model, batch) for batch in task.batches("search")])
    found = interval(task, losses)
    assert found.low < found.value < found.high
    assert compare(task, losses, losses, "points").loss == 0
    assert task.details(losses, "search") == {}
    assert losses.tokens == 2 * 40 * 6


def test_its_fingerprint_is_that_of_its_data():
    prints = [ExactMatch(make_samples(seed)).fingerprint("search") for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


def test_a_task_without_losses_cannot_be_made():
    class Half(Task):
        def batches(self, split):
            return []

    with pytest.raises(TypeError, match="losses"):
        Half()


def test_no_losses_at_all_are_empty():
    assert Losses.concatenate([]).values.shape == (0,)


@dataclass
class Batch:
    ids: torch.Tensor
    name: str


DISTINCT = [
    torch.zeros(2, 3),
    torch.zeros(3, 2),
    torch.zeros(2, 3, dtype=torch.float64),
    np.zeros((2, 3), dtype=np.int32),
    [1, 2],
    [12],
    ["1", "2"],
    [[1], 2],
    [b"1", 2],
    None,
    "None",
    {"a": 1},
    {"a": 2},
    Batch(torch.zeros(1), "a"),
    Batch(torch.zeros(1), "b"),
]


def test_different_values_have_different_fingerprints():
    assert len({fingerprint(value) for value in DISTINCT}) == len(DISTINCT)


def test_equal_values_have_equal_fingerprints():
    assert fingerprint({"b": (1, 2), "a": torch.ones(2)}) == fingerprint({"a": torch.ones(2), "b": (1, 2)})
    assert fingerprint(torch.arange(6).view(2, 3).T) == fingerprint(torch.arange(6).view(2, 3).T.contiguous())


def test_what_has_no_stable_text_is_refused():
    with pytest.raises(TaskError, match="object, which has no fingerprint"):
        fingerprint([object()])


class Bare:
    """Anything with the task's two methods; the batches come one by one."""

    def batches(self, split):
        yield from ([1.0, 0.0], [1.0, 1.0])

    def losses(self, model, batch):
        return Losses(np.array(batch), np.ones(len(batch)), len(batch))


def test_anything_with_the_two_methods_is_a_task():
    task = as_task(Bare())
    losses = Losses.concatenate([task.losses(None, batch) for batch in task.batches("report")])
    assert (task.name, task.metric, task.higher_is_better, len(task.batches("search"))) == ("Bare", "score", True, 2)
    assert task.reduce(losses) == 0.75
    assert task.fingerprint("search") == as_task(Bare()).fingerprint("search")
    assert interval(task, losses).low < 0.75 < interval(task, losses).high
    assert as_task(task) is task


def test_what_an_object_has_beside_the_two_methods_counts():
    class Squared(Bare):
        metric, higher_is_better = "square", False

        def reduce(self, losses):
            return float(losses.values.mean() ** 2)

    task = as_task(Squared())
    losses = Losses(np.array([1.0, 0.0, 1.0]), np.ones(3), 3)
    assert (task.metric, task.higher_is_better) == ("square", False)
    assert task.reduce(losses) == pytest.approx(4 / 9)
    assert task.reduce_without_each(losses) == pytest.approx([1 / 4, 1.0, 1 / 4])


@pytest.mark.parametrize(("given", "lacks"), [(Bare, "class"), (object(), "batches and no method losses"), (3, "3 is")])
def test_what_is_no_task_is_refused(given, lacks):
    with pytest.raises(TaskError, match=lacks):
        as_task(given)
