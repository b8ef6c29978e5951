from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks.encoder import SpikingEncoder
from networks.tasks import Agreement
from networks.tied import TiedNetwork

from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.errors import StudyError, TaskError
from qslm.evaluation import Evaluator, Ledger, evaluate
from qslm.evaluation.parts import shuffled
from qslm.formats import Format
from qslm.study.measuring import Measurements
from qslm.tasks.task import Losses

INT4 = Format.parse("int4")


class Placed(Agreement):
    """Its batches, and its losses, know their places in the split."""

    def __init__(self, model, **options):
        super().__init__(model, **options)
        self.order = torch.randperm(120, generator=torch.Generator().manual_seed(9))

    def batches(self, split):
        ids, labels = (torch.cat(parts)[self.order] for parts in zip(*self.splits[split], strict=True))
        return [Batch(*parts) for parts in zip(ids.split(25), labels.split(25), self.order.split(25), strict=True)]

    def losses(self, model, batch):
        found = super().losses(model, (batch.ids, batch.labels))
        return replace(found, units=batch.units.numpy())


class Batch:
    def __init__(self, ids, labels, units):
        self.ids, self.labels, self.units = ids, labels, units


class Uneven(Agreement):
    """Batches of 50, 50 and 20."""

    def __init__(self, model):
        super().__init__(model, batch=50)


@pytest.fixture(params=[Placed, Uneven])
def ground(request):
    model = SpikingEncoder()
    return model, find_anatomy(model), request.param(model)


def equal(one, other):
    fields = ("values", "weights", "tokens")
    same = all(np.array_equal(getattr(one.losses, name), getattr(other.losses, name)) for name in fields)
    units = [None if found.losses.units is None else found.losses.units.tolist() for found in (one, other)]
    return same and units[0] == units[1] and (one.value, one.low, one.high) == (other.value, other.low, other.high)


def test_an_evaluation_stops_and_goes_on_without_a_trace(ground):
    model, anatomy, task = ground
    allocation, count = Allocation.uniform(anatomy, INT4), len(task.batches("search"))
    with Evaluator(model, anatomy, task, cache_bytes=0) as evaluator:
        whole = evaluator.measure(allocation, "search")
        asked = []
        first = evaluator.measure(allocation, "search", stop=lambda losses: asked.append(losses) or True)
        assert len(asked) == 1 and not first.complete and first.details == {} and whole.complete
        assert equal(replace(first, losses=asked[0]), first)
        assert first.work == first.tokens * len(anatomy.blocks) and first.seconds > 0
        places = evaluator.places("search")[shuffled(count)[0]]
        assert first.losses.units.tolist() == sorted(places.tolist())
        taken = whole.losses.take(first.losses.units)
        assert np.array_equal(taken.values, first.losses.values) and taken.units is first.losses.units
        assert first.value == task.reduce(first.losses) and first.low < first.value < first.high
        second = evaluator.measure(allocation, "search", stop=lambda losses: True, known=first)
        assert not second.complete and set(first.losses.units) < set(second.losses.units)
        third = evaluator.measure(allocation, "search", known=second)
        assert third.complete and equal(third, whole) and third.work == whole.work
        assert third.seconds > second.seconds > first.seconds
        assert evaluator.measure(allocation, "search", known=third) is third


def test_stop_is_asked_after_every_batch_but_the_last(ground):
    model, anatomy, task = ground
    sizes = []
    with Evaluator(model, anatomy, task) as evaluator:
        found = evaluator.measure(
            Allocation.float32(anatomy), "search", stop=lambda losses: sizes.append(len(losses.values))
        )
    lengths = [len(evaluator.places("search")[index]) for index in shuffled(len(task.batches("search")))]
    assert sizes == np.cumsum(lengths)[:-1].tolist() and found.complete
    assert equal(found, evaluate(model, task, "search")) and found.work == evaluate(model, task, "search").work


def test_places_are_learned_once_whoever_asks_first():
    model = SpikingEncoder()
    anatomy, task = find_anatomy(model), Uneven(model)
    allocation = Allocation.uniform(anatomy, INT4)
    assert task.places("search") is None and [len(units) for units in Placed(model).places("search")] == [25] * 4 + [20]
    with Evaluator(model, anatomy, task, cache_bytes=0) as fresh, Evaluator(model, anatomy, task) as resumed:
        fresh.measure(Allocation.float32(anatomy), "search")
        before = fresh.work
        one = fresh.measure(allocation, "search", stop=lambda losses: True)
        other = resumed.measure(allocation, "search", stop=lambda losses: True)
        assert equal(one, other) and one.work == other.work == fresh.work - before
        assert resumed.work == before + other.work
        assert [units.tolist() for units in resumed.places("search")] == [
            list(range(50)), list(range(50, 100)), list(range(100, 120))
        ]  # fmt: skip


def test_what_is_known_of_other_batches_is_refused(ground):
    model, anatomy, task = ground
    allocation = Allocation.uniform(anatomy, INT4)
    with Evaluator(model, anatomy, task) as evaluator:
        known = evaluator.measure(allocation, "search", stop=lambda losses: True)
        for units in (known.losses.units[:-1], np.append(known.losses.units, 10**15)):
            losses = Losses(np.zeros(len(units)), np.ones(len(units)), 1, units)
            with pytest.raises(StudyError, match="not made of its batches"):
                evaluator.measure(allocation, "search", known=replace(known, losses=losses))


def test_batches_that_change_their_size_are_refused():
    model = SpikingEncoder()
    anatomy, task = find_anatomy(model), Uneven(model)
    with Evaluator(model, anatomy, task, cache_bytes=0) as evaluator:
        evaluator.measure(Allocation.float32(anatomy), "search")
        task.splits["search"][0] = tuple(part[:-1] for part in task.splits["search"][0])
        with pytest.raises(TaskError, match=r"has 49 units, it had 50"):
            evaluator.measure(Allocation.float32(anatomy), "search")


def test_a_batch_alone(ground):
    model, anatomy, task = ground
    allocation = Allocation.uniform(anatomy, INT4)
    with Evaluator(model, anatomy, task) as evaluator:
        whole = evaluator.measure(allocation, "search")
        before = evaluator.work
        for index, units in enumerate(evaluator.places("search")):
            part = evaluator.measure_batch(allocation, "search", index)
            assert np.array_equal(part.values, whole.losses.take(units).values)
        assert 0 < evaluator.work - before <= whole.work


@given(st.lists(st.integers(0, 50), unique=True, min_size=1), st.data())
def test_take_picks_by_place(units, data):
    values = np.random.default_rng(len(units)).normal(size=len(units))
    weights = values**2
    losses = Losses(values, weights, 7, np.array(units))
    wanted = data.draw(st.lists(st.sampled_from(units)))
    taken = losses.take(np.array(wanted, dtype=np.int64))
    assert taken.values.tolist() == [values[units.index(unit)] for unit in wanted]
    assert taken.weights.tolist() == [weights[units.index(unit)] for unit in wanted]
    assert taken.units.tolist() == wanted and taken.tokens == 7
    with pytest.raises(TaskError, match="no loss of unit 51"):
        losses.take(np.array([*wanted, 51]))


def test_take_of_a_complete_split_and_of_nothing():
    losses = Losses(np.arange(4.0), np.ones(4), 4)
    assert losses.take(np.array([3, 1])).values.tolist() == [3, 1]
    empty = Losses(np.zeros(0), np.zeros(0), 0, np.zeros(0, dtype=np.int64))
    for one, unit in ((losses, 4), (losses, -1), (empty, 0)):
        with pytest.raises(TaskError, match=f"no loss of unit {unit}"):
            one.take(np.array([unit]))


def test_the_study_goes_on_with_what_the_ledger_has_begun(tmp_path):
    model = SpikingEncoder()
    anatomy, task = find_anatomy(model), Uneven(model)
    allocation, path = Allocation.uniform(anatomy, INT4), tmp_path / "ledger.sqlite"
    with Evaluator(model, anatomy, task, cache_bytes=0) as evaluator, Ledger.open(path, {}) as ledger:
        measurements = Measurements(ledger, evaluator)
        partial = measurements.measure(allocation, "search", "tier", "note", stop=lambda losses: True)
        work = evaluator.work
        again = Measurements(ledger, evaluator).measure(allocation, "search", "tier", "note", stop=lambda losses: True)
        assert evaluator.work == work and equal(partial, again) and again.work == partial.work
        whole = measurements.measure(allocation, "search", "tier", "note")
        assert (
            whole.complete and whole.work == len(anatomy.blocks) * whole.tokens == evaluator.work - work + partial.work
        )
        assert equal(measurements.known(allocation, "search"), evaluate_rounded(model, anatomy, task, allocation))
        assert list(measurements.used.values()) == [whole]
        work = evaluator.work
        ended = measurements.measure(allocation, "search", "tier", "note", stop=lambda losses: True)
        assert (
            np.array_equal(ended.losses.values, partial.losses.values) and not ended.complete
        )  # as it would have ended if the rest were not known
        assert evaluator.work == work


def evaluate_rounded(model, anatomy, task, allocation):
    with Evaluator(model, anatomy, task, cache_bytes=0) as evaluator:
        return evaluator.measure(allocation, "search")


def test_the_order_of_batches_is_random_and_always_the_same():
    assert sorted(shuffled(50)) == list(range(50)) != shuffled(50) == shuffled(50)
    assert shuffled(0) == []


def test_paths_of_blocks():
    anatomy = find_anatomy(SpikingEncoder())
    assert [anatomy.path(block) for block in anatomy.blocks] == [None, "encoder.blocks.0", "encoder.blocks.1", None]
    assert find_anatomy(TiedNetwork()).path("attention 2") == "layers.2"
    layers = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(4)))
    assert find_anatomy(layers).path("attention 0") is None
