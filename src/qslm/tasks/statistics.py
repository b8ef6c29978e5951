"""Intervals: of a metric, and of how much worse one model is than another on the same units."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special  # scipy.stats takes half a second to import

from qslm.errors import TaskError
from qslm.tasks.proportions import tango, wilson
from qslm.tasks.task import Floats, Losses, Task

Kind = Literal["points", "absolute", "relative"]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A metric with its two-sided confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """How much worse a candidate is than the baseline (positive is worse), in the unit of the comparison's kind.

    low, high: the two-sided interval. bound: the one-sided upper bound at the same confidence.
    """

    loss: float
    low: float
    high: float
    bound: float


def interval(task: Task, losses: Losses, confidence: float = CONFIDENCE) -> Interval:
    """The metric of `losses` and its interval: Wilson's for a proportion, else the jackknife's over the units.

    Of a metric on the log scale the jackknife is of its logarithm: for a perplexity P over n windows of equal length
    exp(log P +- t(n-1) s / sqrt(n)), with s the standard deviation of the windows' nats per token. One unit alone says
    nothing of how units vary: its limits are NaN, but for a proportion. Raises TaskError when there is no unit, and
    on the logarithm of a metric that is not positive.
    """
    _check(losses, least=1)
    value = task.reduce(losses)
    if not np.isfinite(value):
        return Interval(value, value, value)
    if is_proportion(task, losses):
        return Interval(value, *wilson(int(losses.values.sum()), len(losses.values), _z_two_sided(confidence)))
    if np.count_nonzero(losses.weights) < 2:
        return Interval(value, math.nan, math.nan)
    with np.errstate(all="ignore"):
        left_out = task.reduce_without_each(losses)[losses.weights > 0]
        if not task.log_scale:
            reach = _t(0.5 + confidence / 2, losses) * _jackknife_error(left_out)
            return Interval(value, value - reach, value + reach)
        if value <= 0 or (left_out <= 0).any():
            raise TaskError(f"A {task.metric} of {value} has no logarithm.", "Leave log_scale of the task at False.")
        factor = np.exp(_t(0.5 + confidence / 2, losses) * _jackknife_error(np.log(left_out)))
        return Interval(value, float(value / factor), float(value * factor))


def compare(task: Task, candidate: Losses, baseline: Losses, kind: Kind, confidence: float = CONFIDENCE) -> Comparison:
    """How much worse `candidate` is than `baseline`, unit by unit, on the same split.

    kind "points": fall of a share, such as accuracy, in percentage points. "absolute": change of the metric
    for the worse. "relative": that change as a fraction of the baseline (0.02 is 2 %). Two proportions are
    compared by Tango's score interval, all else by the jackknife over the units, with Student's t. A
    candidate whose metric is no finite number is infinitely worse.

    Raises TaskError when the units differ, when there are fewer than two, when the baseline is not finite,
    and for points of a metric that falls as models get better.
    """
    _check(candidate, least=2)
    _check(baseline, least=2)
    _check_pair(task, candidate, baseline, kind)
    if not np.isfinite(task.reduce(candidate)):
        return Comparison(np.inf, np.inf, np.inf, np.inf)
    worse = loss_of(task, kind)
    if kind != "relative" and is_proportion(task, candidate) and is_proportion(task, baseline):
        pair = (baseline, candidate) if task.higher_is_better else (candidate, baseline)
        return _compare_proportions(*pair, 100.0 if kind == "points" else 1.0, confidence)
    with np.errstate(all="ignore"):
        left_out = np.asarray(worse(task.reduce_without_each(candidate), task.reduce_without_each(baseline)))
    error = _jackknife_error(left_out[candidate.weights > 0])
    loss = float(worse(task.reduce(candidate), task.reduce(baseline)))
    reach = _t(0.5 + confidence / 2, candidate) * error
    return Comparison(loss, loss - reach, loss + reach, loss + _t(confidence, candidate) * error)


def _compare_proportions(first: Losses, second: Losses, scale: float, confidence: float) -> Comparison:
    """`scale` times the share of ones in `first` minus that in `second`."""
    b = int(np.sum(first.values > second.values))
    c = int(np.sum(first.values < second.values))
    n = len(first.values)
    low, high = tango(b, c, n, _z_two_sided(confidence))
    _, bound = tango(b, c, n, float(special.ndtri(confidence)))
    return Comparison(scale * (b - c) / n, scale * low, scale * high, scale * bound)


def loss_of(task: Task, kind: Kind) -> Callable[[Floats | float, Floats | float], Floats | float]:
    """The function (candidate, baseline) -> loss of this kind."""
    sign = -1.0 if task.higher_is_better else 1.0
    if kind == "relative":
        return lambda candidate, baseline: sign * (candidate - baseline) / np.abs(baseline)
    scale = sign * (100.0 if kind == "points" else 1.0)
    return lambda candidate, baseline: scale * (candidate - baseline)


def _jackknife_error(values: Floats) -> float:
    """Standard error sqrt((n-1)/n sum_i (s_i - mean s)^2) of a statistic with the values s_i without unit i."""
    n = len(values)
    if not np.isfinite(values).all():
        return float("inf")
    return float(np.sqrt((n - 1) / n * np.sum((values - values.mean()) ** 2)))


def is_proportion(task: Task, losses: Losses) -> bool:
    """Whether the metric is a plain share of units that are each right (1) or wrong (0)."""
    plain = type(task).reduce is Task.reduce
    return plain and bool(np.isin(losses.values, (0.0, 1.0)).all() and (losses.weights == 1.0).all())


def _check(losses: Losses, least: int) -> None:
    if losses.values.shape != losses.weights.shape or losses.values.ndim != 1:
        raise TaskError(
            f"Losses of shape {losses.values.shape} have weights of shape {losses.weights.shape}.",
            "Give one loss and one weight for each unit.",
        )
    if (losses.weights < 0).any():
        raise TaskError("A weight of the losses is negative.", "Give the number of losses that a unit sums.")
    counted = np.count_nonzero(losses.weights > 0)
    if counted < least:
        raise TaskError(
            f"{counted} of {len(losses.values)} units have a weight: {least} or more are needed.",
            "Give more data, or a shorter --context.",
        )


def _check_pair(task: Task, candidate: Losses, baseline: Losses, kind: Kind) -> None:
    if not np.array_equal(candidate.weights, baseline.weights):
        raise TaskError(
            f"The candidate has {len(candidate.values)} units and the baseline {len(baseline.values)}, "
            "or their weights differ.",
            "Compare evaluations of the same split.",
        )
    if kind == "points" and not task.higher_is_better:
        raise TaskError(f"{task.metric} is not a share: it has no points to drop.", "Limit its rise (--max-rise).")
    if not np.isfinite(task.reduce(baseline)):
        raise TaskError(f"The baseline's {task.metric} is not a finite number.", "Check the checkpoint's weights.")


def _z_two_sided(confidence: float) -> float:
    return float(special.ndtri(0.5 + confidence / 2))


def _t(probability: float, losses: Losses) -> float:
    return float(special.stdtrit(np.count_nonzero(losses.weights) - 1, probability))
