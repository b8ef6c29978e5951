import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qslm.errors import TaskError
from qslm.tasks.perplexity import Perplexity
from qslm.tasks.statistics import compare, interval
from qslm.tasks.task import Losses, Task, as_task


class Plain(Task):
    """A task whose losses are given, with the direction and the metric that a test needs."""

    def __init__(self, higher_is_better=True):
        self.higher_is_better = higher_is_better

    def batches(self, split):
        return []

    def losses(self, model, batch):
        raise NotImplementedError


class ExpMean(Plain):
    log_scale = True

    def reduce(self, losses):
        with np.errstate(over="ignore"):
            return float(np.exp(super().reduce(losses)))


class FastExpMean(ExpMean):
    def reduce_without_each(self, losses):
        return np.exp(losses.without_each())


class OwnPerplexity(Perplexity):
    """Perplexity of losses that a test gives."""

    batches = losses = Plain.losses


class Median(Plain):
    def reduce(self, losses):
        return float(np.median(losses.values))


def ones(values):
    values = np.asarray(values, dtype=np.float64)
    return Losses(values, np.ones(len(values)), len(values))


def right(count, n):
    return ones([1.0] * count + [0.0] * (n - count))


def test_an_accuracy_has_wilsons_interval():
    found = interval(Plain(), right(747, 872))
    assert found.value == 747 / 872
    assert (found.low, found.high) == (pytest.approx(0.8318, abs=1e-4), pytest.approx(0.8784, abs=1e-4))


def test_a_drop_in_points_has_tangos_interval():
    baseline, candidate = ones([1] * 60 + [0] * 20 + [1] * 920), ones([0] * 60 + [1] * 20 + [1] * 920)
    found = compare(Plain(), candidate, baseline, "points")
    assert found.loss == pytest.approx(4.0)
    assert (found.low, found.high) == (pytest.approx(2.31, abs=0.006), pytest.approx(5.84, abs=0.006))
    assert found.loss < found.bound < found.high


def test_an_error_rate_is_worse_when_it_rises():
    wrong = compare(Plain(higher_is_better=False), ones([1] * 9 + [0] * 91), ones([0] * 100), "absolute")
    assert wrong.loss == pytest.approx(0.09)
    assert 0 < wrong.low < 0.09 < wrong.bound < wrong.high


def test_equal_accuracies_are_not_known_to_be_equal():
    losses = right(700, 872)
    found = compare(Plain(), losses, losses, "points")
    z = 1.6448536269514722
    assert found.loss == 0
    assert found.bound == pytest.approx(100 * z**2 / (872 + z**2), rel=1e-6)


def test_the_jackknife_of_a_mean_is_students_interval():
    rng = np.random.default_rng(0)
    values = rng.normal(3.0, 1.0, 30)
    found = interval(Plain(), ones(values))
    reach = 2.045229642 * values.std(ddof=1) / np.sqrt(30)
    assert (found.low, found.high) == (pytest.approx(values.mean() - reach), pytest.approx(values.mean() + reach))


def test_the_closed_form_is_what_leaving_out_gives():
    rng = np.random.default_rng(1)
    weights = rng.integers(1, 9, 40).astype(float)
    losses = Losses(rng.gamma(2.0, 1.0, 40) * weights, weights, 40)
    slow, fast = ExpMean(False), FastExpMean(False)
    assert slow.reduce_without_each(losses) == pytest.approx(fast.reduce_without_each(losses), rel=1e-12)
    assert interval(slow, losses).low == pytest.approx(interval(fast, losses).low, rel=1e-12)


def test_a_perplexity_has_students_interval_of_its_mean_nats():
    nats = np.random.default_rng(6).normal(3.5, 0.4, 12)
    found = interval(OwnPerplexity(), ones(nats))
    reach = 2.200985160 * nats.std(ddof=1) / np.sqrt(12)
    assert found.low == pytest.approx(np.exp(nats.mean() - reach), rel=1e-6)
    assert found.high == pytest.approx(np.exp(nats.mean() + reach), rel=1e-6)


@given(
    st.lists(st.tuples(st.floats(0, 12), st.integers(1, 256)), min_size=2, max_size=8),  # 12 nats: 160,000 words
    st.sampled_from([0.8, 0.9, 0.95]),
)
def test_the_interval_of_a_perplexity_is_positive_around_it_and_wider_above(windows, confidence):
    nats, weights = (np.array(column, dtype=np.float64) for column in zip(*windows, strict=True))
    found = interval(OwnPerplexity(), Losses(nats * weights, weights, 1), confidence)
    assert 0 < found.low <= found.value <= found.high
    assert found.value / found.low == pytest.approx(found.high / found.value)
    assert found.high - found.value >= 0.999 * (found.value - found.low)


def test_few_windows_once_gave_a_negative_perplexity():
    found = interval(OwnPerplexity(), ones([2.0, 6.0]))
    assert 0 < found.low < found.value < found.high
    with np.errstate(over="ignore"):
        assert interval(OwnPerplexity(), ones([1.0, 700.0])).low >= 0


def test_an_adapted_perplexity_keeps_its_log_scale():
    class Bare:
        log_scale = True
        batches = losses = staticmethod(lambda *_: [])
        reduce = staticmethod(lambda losses: float(np.exp(losses.values.mean())))

    losses = ones([2.0, 6.0, 3.0])
    assert interval(as_task(Bare()), losses).low == pytest.approx(interval(OwnPerplexity(), losses).low)


def test_the_logarithm_of_what_is_not_positive_is_refused():
    class Signed(Plain):
        log_scale = True

    with pytest.raises(TaskError, match="no logarithm"):
        interval(Signed(), ones([-1.0, -2.0]))


def test_a_metric_of_ones_own_is_left_out_unit_by_unit():
    losses = ones([1.0, 2.0, 10.0, 3.0])
    assert Median().reduce_without_each(losses).tolist() == [3.0, 3.0, 2.0, 2.0]
    found = interval(Median(), losses)
    assert found.value == 2.5
    assert found.low < 2.5 < found.high


def test_a_relative_rise_is_a_share_of_the_baseline():
    rng = np.random.default_rng(2)
    baseline = rng.normal(3.0, 0.2, 200)
    found = compare(FastExpMean(False), ones(baseline + np.log(1.02)), ones(baseline), "relative")
    assert found.loss == pytest.approx(0.02)
    assert found.low == pytest.approx(found.high, abs=1e-9)
    absolute = compare(FastExpMean(False), ones(baseline + np.log(1.02)), ones(baseline), "absolute")
    assert absolute.loss == pytest.approx(0.02 * np.exp(baseline.mean()))


def test_a_higher_metric_is_a_negative_loss():
    better = compare(Median(), ones([5.0, 6.0, 7.0]), ones([4.0, 5.0, 6.5]), "absolute")
    assert better.loss == -1.0
    assert compare(Median(), ones([5.0, 6.0, 7.0]), ones([4.0, 5.0, 6.5]), "relative").loss == pytest.approx(-0.2)


def test_a_no_op_loses_exactly_nothing_in_perplexity():
    losses = ones(np.random.default_rng(3).normal(3.0, 0.2, 50))
    found = compare(FastExpMean(False), losses, losses, "absolute")
    assert (found.loss, found.low, found.high, found.bound) == (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e9])
def test_a_candidate_without_a_finite_metric_is_infinitely_worse(bad):
    baseline = ones([2.0, 3.0, 4.0])
    found = compare(FastExpMean(False), ones([2.0, bad, 4.0]), baseline, "relative")
    assert (found.loss, found.bound) == (np.inf, np.inf)
    assert not np.isfinite(interval(FastExpMean(False), ones([2.0, bad, 4.0])).value)


@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_paired_perplexity_covers_the_truth(kind):
    """Windows are hard or easy (shared by both models); the rise is small beside that."""
    rng = np.random.default_rng(4)
    task, windows, trials = FastExpMean(False), 40, 1500
    baseline = rng.gamma(40.0, 0.1, (trials, windows))
    candidate = baseline + rng.gamma(1.0, 0.02, (trials, windows))
    log_moments = np.array([4.0, 4.02])  # expected nats
    truth = np.exp(log_moments[1]) - np.exp(log_moments[0])
    if kind == "relative":
        truth = np.exp(0.02) - 1
    found = [compare(task, ones(c), ones(b), kind) for b, c in zip(baseline, candidate, strict=True)]
    covered = np.mean([one.low <= truth <= one.high for one in found])
    bounded = np.mean([truth <= one.bound for one in found])
    assert 0.92 <= covered <= 0.97
    assert 0.91 <= bounded <= 0.97


def test_perplexity_covers_the_truth_with_uneven_windows():
    rng = np.random.default_rng(5)
    task, windows, trials = FastExpMean(False), 60, 1500
    weights = np.array([256.0] * (windows - 1) + [31.0])
    means = rng.normal(3.5, 0.3, (trials, windows))
    found = [interval(task, Losses(row * weights, weights, 1)) for row in means]
    covered = np.mean([one.low <= np.exp(3.5) <= one.high for one in found])
    assert 0.93 <= covered <= 0.97


def test_one_unit_has_a_value_and_a_proportion_its_interval():
    found = interval(Plain(), ones([1.0]))
    z2 = 1.959963984540054**2
    assert (found.value, found.low, found.high) == (1.0, pytest.approx(1 / (1 + z2)), pytest.approx(1.0))
    alone = interval(FastExpMean(False), Losses(np.array([6.0]), np.array([3.0]), 3))
    assert alone.value == pytest.approx(np.exp(2)) and np.isnan([alone.low, alone.high]).all()
    weighted = interval(Plain(), Losses(np.array([4.0, 0.0]), np.array([1.0, 0.0]), 2))
    assert weighted.value == 4.0 and np.isnan([weighted.low, weighted.high]).all()


def test_two_units_are_compared_and_fewer_refused():
    with pytest.raises(TaskError, match="2 or more"):
        compare(Plain(), ones([1.0]), ones([1.0]), "points")
    with pytest.raises(TaskError, match="1 of 2 units have a weight: 2 or more"):
        losses = Losses(np.ones(2), np.array([1.0, 0.0]), 2)
        compare(Plain(), losses, losses, "absolute")
    with pytest.raises(TaskError, match="1 or more"):
        interval(Plain(), ones([]))
    with pytest.raises(TaskError, match="negative"):
        interval(Plain(), Losses(np.ones(2), np.array([1.0, -1.0]), 2))


def test_other_units_are_refused():
    with pytest.raises(TaskError, match="Compare evaluations of the same split"):
        compare(Plain(), right(1, 3), right(1, 4), "points")
    with pytest.raises(TaskError, match="weights of shape"):
        interval(Plain(), Losses(np.ones(3), np.ones(2), 3))


def test_points_of_a_perplexity_are_refused():
    with pytest.raises(TaskError, match="--max-rise"):
        compare(ExpMean(False), ones([1.0, 2.0]), ones([1.0, 2.0]), "points")


def test_a_baseline_without_a_finite_metric_is_refused():
    with pytest.raises(TaskError, match="baseline"):
        compare(Plain(), ones([1.0, 2.0]), ones([1.0, np.nan]), "absolute")
