from math import inf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm.anatomy import INPUT, OUTPUT, Anatomy, Site
from qslm.budget import Budget
from qslm.formats import FLOAT32, SIGN, Format
from qslm.search import Goal, Options, Outcome
from qslm.search.costs import Costs
from qslm.search.expected import ExpectedFront
from qslm.search.front import Item, pareto_front
from qslm.search.knapsack import MOVES, VERIFICATIONS, KnapsackSearch

BASELINE = 20.0
SCALES = tuple(map(Format.parse, ("int8-row", "int8-row-s8", "int8-g32", "int8-g32-s8")))


def network(blocks=4, width=64, vocabulary=600, binarized=False):
    sites = [Site("emb.weight", (vocabulary, width), INPUT, "emb", (), binarized)]
    shapes = {"key": (width, width), "value": (width, width), "up": (4 * width, width), "ln": (width,)}
    for block in range(blocks):
        sites += [Site(f"b.{block}.{name}", shape, f"attention {block}", name) for name, shape in shapes.items()]
    return Anatomy((*sites, Site("head.weight", (vocabulary, width), OUTPUT, "head")))


ANATOMY, OPTIONS = network(), Options(strategy="knapsack")
MATRICES = OPTIONS.matrices(ANATOMY)


def invented_costs(seed=0):
    """Matrices whose numbers differ a hundredfold in what they cost; about 0.05 nats at 4 bits."""
    generator = np.random.default_rng(seed)
    weights = {site.name: site.numel * 10 ** generator.uniform(-1, 1) for site in MATRICES}
    total = sum(weights.values())
    return Costs({(n, f): 0.05 * w / total * 4.0 ** (4 - f.bits) for n, w in weights.items() for f in OPTIONS.formats})


def test_formats_go_down_in_bits_with_those_of_the_scales():
    texts = [str(fmt) for fmt in Options(precisions=(2,), templates=SCALES).formats]
    assert texts == ["int2-g32", "int2-g32-s8", "int2-row", "int2-row-s8"]


def test_the_smallest_takes_8_bit_scales_where_they_save_more_than_their_step_takes():
    anatomy = Anatomy(tuple(Site(f"{rows}", (rows, 32), INPUT, "m") for rows in (4, 1000)))
    options = Options(precisions=(8, 2), templates=SCALES)
    smallest = options.smallest(anatomy)
    assert [str(fmt) for fmt in smallest.formats] == ["int2-row", "int2-row-s8"]
    assert all(smallest.footprint().file < options.uniform(anatomy, fmt).footprint().file for fmt in options.formats)


@pytest.mark.parametrize("name", ["m", "a.module.of.a.rather.long.name.that.its.entries.in.the.header.repeat"])
def test_limits_of_memory_are_kept_also_where_only_headers_differ(name):
    anatomy = Anatomy(tuple(Site(f"{name}.{i}", (20 + 50 * i, 32), INPUT, f"m{i}") for i in range(6)))
    options = Options(precisions=(3, 2), templates=SCALES)
    smallest = options.smallest(anatomy).footprint().file
    for max_bytes in range(smallest, smallest + 1500, 25):
        search = KnapsackSearch(anatomy, options, goal_of(limit=1e9, max_bytes=max_bytes))
        front = pareto_front(search._items)
        files = [search._allocation(front, point).footprint().file for point in search._fitting(front)]
        assert files and max(files) <= max_bytes


class Truth:
    """A network whose nats are factor * costs^power, with the noise of an allocation; the bound is above the loss."""

    def __init__(self, goal, costs, factor=1.0, power=1.0, noise=0.0):
        self.goal, self.costs, self.factor, self.power, self.noise = goal, costs, factor, power, noise

    def loss(self, allocation):
        nats = self.factor * 0.05 ** (1 - self.power) * self.costs.total(allocation) ** self.power
        whole = 100.0 if self.goal.higher_is_better else 1.0
        return whole * (min(nats, 1.0) if self.goal.higher_is_better else float(np.expm1(min(nats, 50))))

    def outcome(self, allocation):
        loss = self.loss(allocation)
        width = self.noise * loss**0.5
        measured = loss + 0.3 * width * np.random.default_rng(int(allocation.key[:8], 16)).normal()
        verdict = self.goal.budget.verdict(allocation.footprint().file, measured, measured + width)
        return Outcome(verdict.quality_ok, verdict.memory_ok, measured, measured + width)


def goal_of(limit=0.02, max_bytes=None, mu=None, decision="bound", kind="relative"):
    higher = kind == "points"
    return Goal(Budget(max_bytes, limit, kind, decision=decision, mu=mu), 0.9 if higher else BASELINE, higher)


def run(goal, truth, costs, options=OPTIONS, anatomy=ANATOMY):
    """Everything that is asked with its outcome."""
    search, asked = KnapsackSearch(anatomy, options, goal, costs), []
    while (proposal := search.ask()) is not None:
        asked.append((proposal, truth(proposal.allocation)))
        search.tell(*asked[-1])
    assert len(asked) <= search.maximum_evaluations
    return asked


def best_order(goal, asked):
    accepted = [(p.allocation, o) for p, o in asked if o.quality_ok and o.memory_ok]
    return min((goal.order(*one) for one in accepted), default=inf)


def front_of(costs, goal):
    search = KnapsackSearch(ANATOMY, OPTIONS, goal, costs)
    front = pareto_front(search._items)
    return [search._allocation(front, point) for point in range(len(front))]


def smallest_that_holds(goal, truth, costs):
    """By bisection: on the front of the true costs the losses fall with size."""
    points = front_of(costs, goal)
    low, high = 0, len(points) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if truth.outcome(points[middle]).quality_ok else (middle + 1, high)
    return goal.order(points[low], Outcome(True, True, 0.0))


unknown = [(factor, power) for factor in (0.05, 1.0, 20.0) for power in (0.3, 1.0, 3.0)]


@pytest.mark.parametrize("decision", ["bound", "point"])
@pytest.mark.parametrize("kind", ["relative", "absolute", "points"])
@pytest.mark.parametrize(("factor", "power"), unknown)
def test_the_smallest_is_found_whatever_the_losses_are_to_the_costs(factor, power, kind, decision):
    costs, goal = (
        invented_costs(),
        goal_of({"relative": 0.02, "absolute": 0.4, "points": 2.0}[kind], None, None, decision, kind),
    )
    truth = Truth(goal, costs, factor, power)
    if kind == "absolute":
        truth.loss = lambda allocation: BASELINE * Truth.loss(truth, allocation)
    asked = run(goal, truth.outcome, costs)
    assert best_order(goal, asked) <= 1.03 * smallest_that_holds(goal, truth, costs)


def test_noise_and_unknown_sites_cost_little_on_the_average():
    """40 networks whose sites are up to 3 times wrong, with noise: 3 % of the size, 7 evaluations."""
    excess, counts = [], []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        costs, goal = invented_costs(seed), goal_of()
        wrong = {site.name: float(np.exp(0.5 * generator.normal())) for site in MATRICES}
        factor, power = 10 ** generator.uniform(-1.5, 1.5), 3 ** generator.uniform(-1, 1)
        truth = Truth(goal, costs.scaled(wrong), factor, power, 0.014)
        asked = run(goal, truth.outcome, costs)
        excess.append(best_order(goal, asked) / smallest_that_holds(goal, truth, costs) - 1)
        counts.append(len(asked))
    assert np.mean(excess) < 0.03 and np.mean(counts) < 7


@pytest.mark.parametrize("limit", [None, 0.02])
@pytest.mark.parametrize("mu", [0.0, 0.5, 5.0, 20.0])
@pytest.mark.parametrize("factor", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_the_best_score_is_found(mu, limit, factor, power):
    costs, goal = invented_costs(), goal_of(limit, mu=mu)
    truth = Truth(goal, costs, factor, power)
    asked = run(goal, truth.outcome, costs)
    orders = [goal.order(one, found) for one in front_of(costs, goal)[::5] if (found := truth.outcome(one)).quality_ok]
    assert best_order(goal, asked) <= min(orders) + max(0.01 * mu, 0.001 * BASELINE)


def test_only_memory_takes_what_is_smallest_and_nothing_beyond_it():
    costs = invented_costs()
    truth = Truth(goal_of(None), costs)
    (only,) = run(truth.goal, truth.outcome, costs)
    assert only[0].allocation == OPTIONS.smallest(ANATOMY)


@pytest.mark.parametrize("mu", [None, 5.0])
@pytest.mark.parametrize("share", [1.0, 1.001, 1.3, 3.0])
def test_nothing_beyond_the_limit_of_memory_is_asked(mu, share):
    """Tiny matrices, where a header is larger than all numbers."""
    tiny = Anatomy(tuple(Site(f"m.{i}", (3 + i, 8), f"attention {i}", "m") for i in range(5)))
    smallest = OPTIONS.smallest(tiny).footprint().file
    goal = goal_of(0.02, int(share * smallest), mu)
    for factor in (0.0, 1e-3, 1.0, 1e4):
        truth = Truth(goal, Costs.by_bits([(site.name, site.numel) for site in tiny.sites], OPTIONS.formats), factor)
        asked = run(goal, truth.outcome, None, anatomy=tiny)
        assert asked and all(goal.keeps_memory(proposal.allocation) for proposal, _ in asked)


def test_a_memory_that_nothing_keeps_asks_nothing():
    goal = goal_of(0.02, OPTIONS.smallest(ANATOMY).footprint().file - 1)
    assert run(goal, Truth(goal, invented_costs()).outcome, None) == []


def test_where_nothing_holds_the_float_network_is_asked_last():
    asked = run(goal_of(), lambda allocation: Outcome(False, True, inf), invented_costs())
    assert asked[-1][0].allocation == OPTIONS.uniform(ANATOMY, FLOAT32)
    assert asked[-2][0].allocation == front_of(invented_costs(), goal_of())[-1]
    assert len(asked) <= VERIFICATIONS + 1


def test_the_limit_of_evaluations_is_kept():
    goal = goal_of()
    for limit in (1, 3):
        options = Options(strategy="knapsack", max_evaluations=limit)
        assert KnapsackSearch(ANATOMY, options, goal).maximum_evaluations == limit
        truth = Truth(goal, invented_costs(), 20.0, 3.0)
        assert len(run(goal, truth.outcome, invented_costs(), options)) == limit


def test_an_exchange_takes_what_the_sum_could_not_know():
    """A matrix that costs less than expected: the front ends, and an exchange goes on, and only by what is better."""
    costs, goal = invented_costs(), goal_of()
    cheap = {site.name: 0.01 for site in MATRICES if site.name.endswith("up")}
    asked = run(goal, Truth(goal, costs.scaled(cheap)).outcome, costs)
    tiers = [proposal.tier for proposal, _ in asked]
    assert tiers == sorted(tiers, key=["front", "exchange"].index) and 1 <= tiers.count("exchange") <= MOVES
    best = best_order(goal, [one for one in asked if one[0].tier == "front"])
    for proposal, outcome in asked:
        if proposal.tier == "exchange":
            assert goal.order(proposal.allocation, outcome) < best


def test_signs_are_kept_and_vectors_stay():
    anatomy, goal = network(binarized=True), goal_of()
    asked = run(goal, lambda allocation: Outcome(True, True, 0.0, 0.0), None, anatomy=anatomy)
    for proposal, _ in asked:
        assert proposal.allocation["emb.weight"] == SIGN
        assert proposal.allocation["b.0.ln"] == FLOAT32


# ---- what is expected of the front --------------------------------------------------------------------------------


def expected(goal, costs=(8.0, 2.0, 0.5, 0.1, 0.02, 0.0)):
    front = pareto_front([Item(tuple(range(10, 10 + len(costs))), costs)])
    return ExpectedFront(front, goal, 100)


goals = st.sampled_from(
    [goal_of(kind=k, decision=d) for k in ("relative", "absolute", "points") for d in ("bound", "point")]
)
losses = st.one_of(st.floats(-5, 5), st.sampled_from((0.0, -1.0, 1e300, -1e300, inf, -inf, nan)))


@settings(max_examples=200, deadline=None)
@given(goals, st.dictionaries(st.integers(0, 5), st.tuples(losses, losses)))
def test_what_is_expected_is_finite_and_does_not_rise_with_size(goal, told):
    found = expected(goal)
    found.evidence.update({point: Outcome(True, True, *pair) for point, pair in told.items()})
    assert np.isfinite(found.losses).all() and np.isfinite(found.orders).all()
    assert np.isfinite(found.decisive).all() and (np.diff(found.decisive) <= 0).all()


@given(goals, st.dictionaries(st.integers(1, 4), st.floats(0.05, 20.0), min_size=1))
def test_at_an_evaluated_point_what_was_measured_is_expected(goal, factors):
    found = expected(goal)
    plain = found.losses
    measured = {point: float(plain[point] * factor) for point, factor in factors.items()}
    found.evidence.update({point: Outcome(True, True, loss, 2 * loss) for point, loss in measured.items()})
    for point, loss in measured.items():
        assert found.losses[point] == pytest.approx(loss, rel=1e-6)
        assert found.decisive[point] >= loss * (1 - 1e-6)


def test_without_evidence_the_costs_are_nats():
    assert expected(goal_of()).losses == pytest.approx(np.expm1([8.0, 2.0, 0.5, 0.1, 0.02, 0.0]), abs=1e-11)
    assert expected(goal_of(kind="absolute")).losses[2] == pytest.approx(BASELINE * np.expm1(0.5))
    assert expected(goal_of(kind="points")).losses[3] == pytest.approx(10.0)


def test_a_power_of_the_costs_is_found_from_two_points():
    found = expected(goal_of(decision="point"))
    for point in (2, 3):
        found.evidence[point] = Outcome(True, True, float(np.expm1(3 * found.front.costs[point] ** 1.5)))
    assert found.losses[:5] == pytest.approx(np.expm1(3 * found.front.costs[:5] ** 1.5), rel=1e-6)
