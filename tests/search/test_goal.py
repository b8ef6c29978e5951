from math import inf, nan

import pytest
from networks.encoder import SpikingEncoder

from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.budget import Budget, Candidate
from qslm.formats import Format
from qslm.search import Goal, Outcome

ANATOMY = find_anatomy(SpikingEncoder())
EIGHT, FOUR = (Allocation.uniform(ANATOMY, Format("integer", bits)) for bits in (8, 4))


def broken(loss, bound=inf):
    return Outcome(False, True, loss, bound)


def test_memory_is_the_file_to_the_byte():
    size = EIGHT.footprint().file
    assert Goal(Budget(size, None, "relative"), 20.0, False).keeps_memory(EIGHT)
    tight = Goal(Budget(size - 1, None, "relative"), 20.0, False)
    assert not tight.keeps_memory(EIGHT)
    assert tight.memory_excess(EIGHT) == pytest.approx(1 / (size - 1)) and tight.memory_excess(FOUR) == 0.0
    assert Goal(Budget(None, None, "relative"), 20.0, False).memory_excess(EIGHT) == 0.0


def test_the_excess_of_quality_is_a_share_of_the_limit():
    by_bound, by_point = (
        Goal(Budget(None, 0.1, "relative", decision=decision), 20.0, False) for decision in ("bound", "point")
    )
    assert by_bound.quality_excess(broken(0.05, 0.2)) == pytest.approx(1.0)
    assert by_point.quality_excess(broken(0.15, 0.9)) == pytest.approx(0.5)
    assert by_bound.quality_excess(broken(0.15)) == pytest.approx(0.5)
    assert by_bound.quality_excess(Outcome(True, True, 9.0)) == 0.0
    assert by_bound.quality_excess(broken(0.05)) > 0.0
    assert by_bound.quality_excess(broken(nan, nan)) == by_bound.quality_excess(broken(inf)) == inf
    assert Goal(Budget(None, None, "relative"), 20.0, False).quality_excess(broken(1.0, 2.0)) == inf


@pytest.mark.parametrize(
    ("kind", "baseline", "higher", "loss", "value"),
    [
        ("relative", 20.0, False, 0.05, 21.0),
        ("absolute", 20.0, False, 1.5, 21.5),
        ("points", 0.9, True, 2.0, 0.88),
        ("absolute", 5.0, True, 1.0, 4.0),
    ],
)
def test_the_metric_is_what_the_loss_says(kind, baseline, higher, loss, value):
    assert Goal(Budget(None, None, kind), baseline, higher).value(broken(loss)) == pytest.approx(value)


@pytest.mark.parametrize(
    ("kind", "baseline", "higher", "unit"), [("relative", 20.0, False, 0.02), ("points", 0.9, True, 1)]
)
@pytest.mark.parametrize("mu", [None, 0.0, 1.0, 20.0])
def test_the_order_is_that_of_the_budget(kind, baseline, higher, unit, mu):
    """Of two that keep the budget, the one that `Budget.select` takes has the smaller order."""
    goal = Goal(Budget(None, None, kind, mu=mu), baseline, higher)
    found = [(EIGHT, Outcome(True, True, 0.0, 0.0)), (FOUR, Outcome(True, True, 2 * unit, 2 * unit))]
    candidates = [
        Candidate(
            one.key,
            one.footprint().file,
            one.footprint().tensors / ANATOMY.float32_bytes,
            goal.value(outcome),
            outcome.loss,
            outcome.bound,
        )
        for one, outcome in found
    ]
    best = min(found, key=lambda pair: goal.order(*pair))[0]
    assert goal.budget.select(candidates, higher_is_better=higher).key == best.key
