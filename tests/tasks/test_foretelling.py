"""What is foretold is what the fixed-size rule says of the whole split, by simulation with limits all around it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm.errors import TaskError
from qslm.tasks.foretelling import ERROR, foretell
from qslm.tasks.perplexity import Perplexity
from qslm.tasks.statistics import compare
from qslm.tasks.task import Losses, Task


class Nothing:
    def batches(self, split):
        return []

    def losses(self, model, batch):
        raise NotImplementedError


class Language(Nothing, Perplexity):
    pass


class Mean(Nothing, Task):
    def __init__(self, higher_is_better=True):
        self.higher_is_better = higher_is_better


class Median(Mean):
    def reduce(self, losses):
        return float(np.median(losses.values))


def take(losses, units):
    return Losses(losses.values[units], losses.weights[units], 1, units)


def whole_rule(task, candidate, baseline, kind, decision):
    found = compare(task, candidate, baseline, kind)
    return found.bound if decision == "bound" else found.loss


def ask(task, candidate, baseline, batches, kind, decision, limit, exchangeable=True):
    """(what is foretold, share of the units that it took); (None, 1.0) when it never is."""
    n = len(baseline.values)
    groups = np.arange(n)
    if not exchangeable:
        for number, batch in enumerate(batches):
            groups[batch] = number
    for end in range(1, len(batches)):
        units = np.concatenate(batches[:end])
        rule = {"kind": kind, "decision": decision, "limit": limit, "groups": groups, "looks": len(batches) - 1}
        found = foretell(task, take(candidate, units), baseline, **rule)
        if found is not None:
            return found, len(units) / n
    return None, 1.0


def simulate(task, pairs, batches_of, kind, decision, offsets, exchangeable=True):
    """(foretold, wrong, share of units used), summed over pairs and limits at `offsets` around the whole truth."""
    foretold = wrong = used = 0
    for candidate, baseline in pairs:
        value = whole_rule(task, candidate, baseline, kind, decision)
        batches = batches_of(baseline)
        for offset in offsets:
            found, share = ask(task, candidate, baseline, batches, kind, decision, value + offset, exchangeable)
            used += share / (len(pairs) * len(offsets))
            if found is not None:
                foretold += 1
                wrong += found != (value <= value + offset)
    return foretold, wrong, used


DIFFERENCES = {  # nats per token of 256 windows: (differences, level, tokens)
    "normal": lambda rng, level, tokens: rng.normal(0.03, 0.04, 256),
    "t4": lambda rng, level, tokens: 0.03 + 0.03 * rng.standard_t(4, 256),
    "lognormal": lambda rng, level, tokens: 0.012 * rng.lognormal(0, 1, 256),
    "left lognormal": lambda rng, level, tokens: 0.06 - 0.012 * rng.lognormal(0, 1, 256),
    "noisier when short": lambda rng, level, tokens: 0.03 + 0.6 * rng.normal(size=256) / np.sqrt(tokens),
    "harder is worse": lambda rng, level, tokens: 0.1 * (level - 3) + rng.normal(0, 0.04, 256),
}


def windows(name, rng, trials):
    pairs = []
    for _ in range(trials):
        tokens = rng.integers(20, 257, 256).astype(float) if name == "noisier when short" else np.full(256, 256.0)
        level = rng.lognormal(1.2, 0.2, 256)
        difference = DIFFERENCES[name](rng, level, tokens)
        pairs.append((Losses((level + difference) * tokens, tokens, 1), Losses(level * tokens, tokens, 1)))
    return pairs


def shuffled(rng, size):
    return lambda baseline: np.array_split(rng.permutation(len(baseline.values)), len(baseline.values) // size)


@pytest.mark.parametrize("decision", ["bound", "point"])
@pytest.mark.parametrize("name", DIFFERENCES)
def test_of_perplexities_at_most_one_percent_differ(name, decision):
    rng = np.random.default_rng(11)
    offsets = [sign * 0.0025 * far for far in (0.1, 0.5, 1, 2, 3, 5, 8, 12) for sign in (-1, 1)]  # 0.0025: 1 error
    found = simulate(Language(), windows(name, rng, 40), shuffled(rng, 16), "relative", decision, offsets)
    foretold, wrong, used = found
    assert foretold > 250
    assert wrong <= 0.01 * foretold
    assert used < 0.85


@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_a_large_margin_takes_few_windows(kind):
    rng = np.random.default_rng(2)
    scale = 1.0 if kind == "relative" else 30.0
    pairs = windows("normal", rng, 30)
    for far, most in ((-0.05, 0.16), (0.05, 0.16), (0.02, 0.4)):
        foretold, wrong, used = simulate(Language(), pairs, shuffled(rng, 16), kind, "bound", [far * scale])
        assert (foretold, wrong) == (30, 0)
        assert used < most


def sentences(rng, trials, worse, better):
    """Pairs of 1,500 sentences in the order of their lengths, of which the longer ones change more often."""
    pairs, more = [], np.linspace(0.3, 1.7, 1500)
    for _ in range(trials):
        right = rng.random(1500) < 0.8
        lost, won = rng.random(1500) < more * worse / 0.8, rng.random(1500) < more * better / 0.2
        after = np.where(right, ~lost, won)
        ones = np.ones(1500)
        pairs.append((Losses(after.astype(float), ones, 1), Losses(right.astype(float), ones, 1)))
    return pairs


def by_length(rng):
    return lambda baseline: [
        one for _, one in sorted(zip(rng.random(24), np.array_split(np.arange(1500), 24), strict=True))
    ]


@pytest.mark.parametrize("decision", ["bound", "point"])
@pytest.mark.parametrize(("worse", "better"), [(0.002, 0.0), (0.01, 0.01), (0.04, 0.02), (0.15, 0.03)])
def test_of_proportions_at_most_one_percent_differ(worse, better, decision):
    rng = np.random.default_rng(3)
    offsets = [sign * far for far in (0.01, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0, 15.0) for sign in (-1, 1)]
    pairs = sentences(rng, 12, worse, better)
    foretold, wrong, used = simulate(Mean(), pairs, by_length(rng), "points", decision, offsets, exchangeable=False)
    assert foretold > 40
    assert wrong <= 0.01 * foretold
    assert used < 0.95
    broken, _, few = simulate(Mean(), pairs, by_length(rng), "points", decision, [20.0], exchangeable=False)
    assert broken == 12 and few < 0.5


def test_single_sentences_that_are_drawn_at_random_are_foretold_sooner():
    rng = np.random.default_rng(5)
    pairs = sentences(rng, 10, 0.04, 0.02)
    foretold, wrong, used = simulate(Mean(), pairs, shuffled(rng, 64), "points", "bound", [4.0, -4.0])
    assert (foretold, wrong) == (20, 0) and used < 0.6


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_weighted_means_are_foretold_in_the_direction_of_their_metric(higher_is_better):
    rng = np.random.default_rng(6)
    level = rng.normal(5, 1, 200)
    drop = rng.normal(0.5, 0.3, 200) * (-1 if higher_is_better else 1)
    baseline, candidate = (Losses(values, np.ones(200), 1) for values in (level, level + drop))
    batches = np.array_split(rng.permutation(200), 10)
    for limit, kept in ((0.3, False), (0.8, True)):
        found, share = ask(Mean(higher_is_better), candidate, baseline, batches, "absolute", "bound", limit)
        assert found is kept and share <= 0.6


@settings(max_examples=60, deadline=None)
@given(
    st.integers(8, 40), st.integers(0, 10_000), st.sampled_from(["bound", "point"]),
    st.sampled_from(["points", "absolute", "relative"]), st.booleans(),
)  # fmt: skip
def test_all_units_give_what_the_rule_says(n, seed, decision, kind, share):
    rng = np.random.default_rng(seed)
    task = Mean() if share or kind == "points" else Language()
    values = rng.integers(0, 2, (2, n)).astype(float) if share else rng.gamma(3.0, 1.0, (2, n))
    weights = np.ones(n) if share else rng.integers(1, 9, n).astype(float)
    values[1, 0] = 1.0  # a share of nothing has no relative loss
    candidate, baseline = (Losses(row * weights, weights, 1) for row in values)
    value = whole_rule(task, candidate, baseline, kind, decision)
    for limit in (value - 1e-3, value + 1e-3):
        rule = {"kind": kind, "decision": decision, "limit": limit, "groups": np.arange(n), "looks": 3}
        assert foretell(task, take(candidate, rng.permutation(n)), baseline, **rule) is (value <= limit)


RULE = {"kind": "relative", "decision": "bound", "limit": 0.5, "looks": 5}


def test_what_is_not_finite_breaks_at_once():
    (candidate, baseline), *_ = windows("normal", np.random.default_rng(0), 1)
    candidate.values[3] = np.nan
    assert foretell(Language(), take(candidate, np.array([3])), baseline, groups=np.arange(256), **RULE) is False
    candidate.values[3] = 1e9
    assert foretell(Language(), take(candidate, np.arange(128)), baseline, groups=np.arange(256), **RULE) is None
    candidate.values[:] = 1e9 + np.arange(256)
    assert foretell(Language(), take(candidate, np.arange(128)), baseline, groups=np.arange(256), **RULE) is False


@given(st.floats(0, 340), st.sampled_from([Language(), Mean()]), st.sampled_from(["absolute", "relative"]))
def test_losses_of_any_size_are_foretold_or_not_but_never_stop_a_study(magnitude, task, kind):
    (candidate, baseline), *_ = windows("normal", np.random.default_rng(0), 1)
    grown = candidate.values * (10**magnitude if isinstance(task, Mean) and magnitude < 300 else 1 + magnitude)
    huge = take(Losses(grown, candidate.weights, 1), np.arange(128))
    assert foretell(task, huge, baseline, groups=np.arange(256), **RULE | {"kind": kind}) in (True, False, None)


def test_too_few_groups_another_metric_and_no_spread_say_nothing():
    (candidate, baseline), *_ = windows("normal", np.random.default_rng(0), 1)
    batch = np.arange(256) // 16
    half = take(candidate, np.arange(64))
    assert foretell(Language(), half, baseline, groups=batch, **RULE | {"limit": 5.0}) is True
    assert foretell(Language(), take(candidate, np.arange(48)), baseline, groups=batch, **RULE | {"limit": 5.0}) is None
    assert foretell(Median(False), half, baseline, groups=np.arange(256), **RULE) is None
    assert foretell(Mean(False), half, baseline, groups=np.arange(256), **RULE) is True
    same = take(baseline, np.arange(64))
    assert foretell(Language(), same, baseline, groups=np.arange(256), **RULE) is None


def test_more_looks_and_earlier_ones_get_less_of_the_error():
    (candidate, baseline), *_ = windows("normal", np.random.default_rng(1), 1)
    value = whole_rule(Language(), candidate, baseline, "relative", "bound")

    def least_margin(units, looks):
        margins = np.geomspace(1e-4, 10, 400)
        rule = {"groups": np.arange(256), "looks": looks, "kind": "relative", "decision": "bound"}
        part = take(candidate, np.arange(units))
        return next(m for m in margins if foretell(Language(), part, baseline, limit=value + m, **rule))

    assert least_margin(32, 1) < least_margin(32, 16) < least_margin(32, 256)
    assert least_margin(128, 16) < least_margin(64, 16) < least_margin(32, 16)
    assert ERROR == 0.005


def test_units_that_do_not_fit_are_refused():
    (candidate, baseline), *_ = windows("noisier when short", np.random.default_rng(0), 1)
    groups = np.arange(256)
    with pytest.raises(TaskError, match="do not fit the 256 units"):
        foretell(Language(), Losses(candidate.values[:9], candidate.weights[:9], 1), baseline, groups=groups, **RULE)
    with pytest.raises(TaskError, match="9 groups"):
        foretell(Language(), candidate, baseline, groups=groups[:9], **RULE)
    with pytest.raises(TaskError, match="not the baseline's"):
        other = Losses(candidate.values[:9], candidate.weights[:9] + 1, 1, np.arange(9))
        foretell(Language(), other, baseline, groups=groups, **RULE)
    with pytest.raises(TaskError, match="0 looks"):
        foretell(Language(), candidate, baseline, groups=groups, **RULE | {"looks": 0})
