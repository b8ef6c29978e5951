from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from qslm.search.front import LARGEST, Item, pareto_front

few = st.integers(0, 6)
grid = st.sampled_from((0.0, 0.25, 0.5, 1.0, 1.0, 3.5))  # their sums are exact, so that ties are ties


@st.composite
def items(draw):
    """Up to 5 items of up to 4 options; zero sizes and equal costs come often."""
    count = draw(st.integers(0, 5))
    options = [draw(st.lists(st.tuples(few, grid), min_size=1, max_size=4)) for _ in range(count)]
    return [Item(*map(tuple, zip(*one, strict=True))) for one in options]


def brute(items):
    """The least cost at every size, and of those what is cheaper than all that is smaller."""
    least = {}
    for choice in product(*(range(len(item.sizes)) for item in items)):
        size = sum(item.sizes[option] for item, option in zip(items, choice, strict=True))
        cost = sum(item.costs[option] for item, option in zip(items, choice, strict=True))
        least[size] = min(cost, least.get(size, np.inf))
    front = []
    for size in sorted(least):
        if not front or least[size] < front[-1][1]:
            front.append((size, least[size]))
    return front


def check_attained(front, items):
    """Sizes rise, costs fall, and every point is the sum of its options."""
    assert (np.diff(front.sizes) > 0).all() and (np.diff(front.costs) < 0).all()
    for point in range(len(front)):
        options = front.options(point)
        assert len(options) == len(items)
        assert front.sizes[point] == sum(item.sizes[i] for item, i in zip(items, options, strict=True))
        costs = sum(item.costs[i] for item, i in zip(items, options, strict=True))
        assert front.costs[point] == pytest.approx(costs, rel=1e-12)


@settings(max_examples=200, deadline=None)
@given(items())
def test_it_is_what_trying_everything_finds(items):
    front = pareto_front(items)
    assert list(zip(front.sizes, front.costs, strict=True)) == brute(items)
    check_attained(front, items)


@settings(max_examples=100, deadline=None)
@given(items(), st.integers(1, 6))
def test_with_few_states_the_points_are_attained_and_both_ends_exact(items, largest):
    front, whole = pareto_front(items, largest), brute(items)
    check_attained(front, items)
    assert len(front) <= largest + 1
    assert (front.sizes[0], front.costs[0]) == whole[0]
    assert (front.sizes[-1], front.costs[-1]) == whole[-1]
    assert all(
        any(size <= s and cost <= c for size, cost in whole) for s, c in zip(front.sizes, front.costs, strict=True)
    )


def invented(count, options, seed, shapes=None):
    """Items of random sizes that fall as their costs rise."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        unit = int(generator.integers(1000, 9_000_000) if shapes is None else generator.choice(shapes))
        bits = np.sort(generator.choice(np.arange(2, 17), options, replace=False))[::-1]
        costs = 10 ** generator.uniform(-6, -1) * 4.0 ** -(bits - 2.0) * generator.uniform(0.5, 2, options)
        found.append(Item(tuple(int(unit * b) // 8 for b in bits), tuple(map(float, costs))))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_a_solver_finds_nothing_cheaper_at_any_budget(seed):
    """HiGHS on 20 items of 6 options, at random numbers of bytes."""
    items = invented(20, 6, seed, shapes=(4096, 16384, 40_000, 65_536))
    front = pareto_front(items, 1 << 20)
    generator = np.random.default_rng(seed)
    sizes, costs = np.concatenate([i.sizes for i in items]), np.concatenate([i.costs for i in items])
    scale = costs.max()
    each = np.kron(np.eye(20), np.ones(6))
    for budget in generator.integers(front.sizes[0], front.sizes[-1] + 1000, 3):
        limits = [LinearConstraint(each, 1, 1), LinearConstraint(sizes[None], -np.inf, int(budget))]
        # the gap that HiGHS may leave is relative to the cost
        solved = milp(costs / scale, constraints=limits, integrality=1, bounds=Bounds(0, 1), options={"mip_rel_gap": 0})
        assert solved.success
        point = int(np.searchsorted(front.sizes, budget, side="right")) - 1
        assert front.costs[point] == pytest.approx(solved.fun * scale, rel=1e-4, abs=1e-6 * scale)


def relaxed(items):
    """Points that are surely on the front: the least cost + price * size, at many prices."""
    points = set()
    for price in np.geomspace(1e-13, 1e-6, 200):
        best = [int(np.argmin(np.asarray(item.costs) + price * np.asarray(item.sizes))) for item in items]
        chosen = list(zip(items, best, strict=True))
        points.add((sum(item.sizes[i] for item, i in chosen), sum(item.costs[i] for item, i in chosen)))
    return sorted(points)


def test_three_hundred_items_of_mixed_shapes_stay_within_bounds():
    """Where no two sizes are alike the states are bounded; a quarter of LARGEST costs 1.5 % of size at most."""
    items, largest = invented(300, 10, 0), LARGEST // 4
    front = pareto_front(items, largest)
    assert all(len(stage.parents) <= largest + 1 for stage in front.stages)
    assert sum(stage.parents.nbytes + stage.options.nbytes for stage in front.stages) <= 300 * 6 * (largest + 1)
    exact = relaxed(items)
    assert len(exact) > 100
    for size, cost in exact:
        at = min(int(np.searchsorted(-front.costs, -cost * (1 + 1e-9))), len(front) - 1)
        assert front.sizes[at] <= 1.015 * size


def test_a_network_of_few_shapes_is_exact():
    """Equal shapes fall together: far fewer states than are kept."""
    shapes = [(768, 768)] * 4 + [(3072, 768), (768, 3072)]
    generator = np.random.default_rng(0)
    items = [
        Item(
            tuple(rows * columns * bits // 8 + 8 * rows for bits in (16, 8, 6, 4, 2)),
            tuple(float(cost) for cost in 10 ** generator.uniform(-5, -2) * 4.0 ** -np.array([16, 8, 6, 4, 2])),
        )
        for rows, columns in shapes * 12
    ]
    assert max(len(stage.parents) for stage in pareto_front(items).stages) < LARGEST / 4
