"""Foretelling, from some units of a split, what the fixed-size rule will say of a candidate on all of them.

The candidate is measured on units drawn without replacement, while the baseline knows them all. After each batch the
number that the rule will compare with its limit is put between two ends. Once both are on one side of the limit the
rest need not be measured; what is never foretold is measured to its end and judged as if nobody had looked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isnan, sqrt
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from qslm.errors import TaskError
from qslm.tasks.perplexity import Perplexity, exp
from qslm.tasks.proportions import tango, wilson
from qslm.tasks.statistics import CONFIDENCE, Kind, is_proportion, loss_of
from qslm.tasks.task import Floats, Losses, Task

Integers = npt.NDArray[np.int64]
Metric = Callable[[Floats], Floats]
Ends = tuple[float, float]

ERROR = 0.005  # probability, over all looks, that what is foretold is not what the whole split says
LEAST_GROUPS = 4  # fewer say nothing of how groups vary
SKEWNESS = 2.0  # times that of the sample, which shows less than there is; chosen on simulated lognormal losses
NEAR = 1e-9  # of the limit: nearer than that, rounding decides


def foretell(
    task: Task,
    candidate: Losses,
    baseline: Losses,
    *,
    kind: Kind,
    decision: Literal["bound", "point"],
    limit: float,
    groups: Integers,
    looks: int,
) -> bool | None:
    """Whether `candidate` will keep `limit` on the whole split by the fixed-size rule; None: it cannot be said yet.

    candidate: the losses of some units, `units` their places in the split. baseline: those of all `(units,)`.
    kind, decision, limit: as in `compare` and `Budget`: what keeps the limit is the one-sided bound of the loss or its
    measured value. groups: int64 `(units,)`, what was drawn together at random: the batch of a unit, or the unit
    itself where a task is `exchangeable`. looks: how often one asks before the split ends, after about equal parts.

    A candidate is foretold wrongly with a probability of 0.5 % (ERROR) at most: after the share t of the units,
    ERROR t^2 may be spent (Lan and DeMets, Biometrika 70, 1983; the power: Kim and DeMets, Biometrika 74, 1987), and
    the errors of the looks are added up. The assumption: as a model's losses have no bound, this holds asymptotically,
    as the means of the groups seen and of the rest become normal (Hajek 1960; compare the asymptotic confidence
    sequences of Waudby-Smith et al., Time-uniform central limit theory, Annals of Statistics 52, 2024). t quantiles and
    margins for skewness and kurtosis stand for what small samples lack; losses that are nearly always alike and rarely
    enormous can deceive them.

    Only weighted means, perplexities and proportions are foretold. A loss that is not finite breaks any limit at once.
    Raises TaskError when the units do not fit the baseline or `looks` is not positive.
    """
    sample = _sample(candidate, baseline, groups)
    if not np.isfinite(candidate.values).all():
        return False
    if len(sample.sizes) < LEAST_GROUPS or not np.isfinite(baseline.values).all():
        return None
    if looks < 1:
        raise TaskError(f"{looks} looks are none.", "Give the number of batches but the last.")
    ends = _ends(task, sample, kind, decision, _error(sample.seen_units / sample.units, looks))
    if ends is None or any(map(isnan, ends)):
        return None
    if ends[1] <= limit:
        return True
    return False if ends[0] > limit + NEAR * max(1.0, limit) else None


@dataclass(frozen=True, eq=False)
class _Sample:
    """The units seen, in pairs, and how much there is in all.

    candidate, baseline: losses of the units seen `(seen_units,)`. labels: their groups, counted from 0, with the summed
    weights `sizes` `(seen groups,)`. units, groups, weight, baseline_sum: of the whole split.
    """

    candidate: Losses
    baseline: Losses
    labels: Integers
    sizes: Floats
    units: int
    groups: int
    weight: float
    baseline_sum: float

    @property
    def seen_units(self) -> int:
        return len(self.labels)

    def mean(self, values: Floats, error: float) -> tuple[float, float, float]:
        """The summed values per weight, and how far below and above it, but for `error` each, that of all units is.

        Ratio estimate over groups drawn without replacement: q s sqrt((1/n)(1 - n/N)) over the mean size of a group,
        with s of the residuals (Cochran, Sampling Techniques, 1977, sections 6.4 and 9A.1). q is of t with m - 1
        degrees of freedom, m the smaller of n and N - n: the mean of the rest has to be normal too (Hajek 1960). To
        the side of the longer tail it grows by |skewness| (2 q^2 + 1)/(6 sqrt(m)) (Johnson, Journal of the American
        Statistical Association 73, 1978).
        """
        n = len(self.sizes)
        sums = np.bincount(self.labels, values)
        mean = float(sums.sum() / self.sizes.sum())
        m = min(n, self.groups - n)
        if m < 2:
            unknown = inf if n < self.groups else 0.0
            return mean, unknown, unknown
        residuals = sums - mean * self.sizes
        largest, shares = _shares(residuals)
        second, third = float(np.mean(shares**2)), float(np.mean(shares**3))
        error_of_mean = largest * sqrt(second / (n - 1) * (1 - n / self.groups)) * self.groups / self.weight
        q = -float(special.stdtrit(m - 1, error))
        skewness = SKEWNESS * third / second**1.5 if second else 0.0
        further = skewness * (2 * q * q + 1) / (6 * sqrt(m))
        return mean, (q + max(-further, 0.0)) * error_of_mean, (q + max(further, 0.0)) * error_of_mean


def _sample(candidate: Losses, baseline: Losses, groups: Integers) -> _Sample:
    complete = len(baseline.values)
    units = np.arange(len(candidate.values)) if candidate.units is None else candidate.units
    fitting = len(groups) == complete and len(units) <= complete and (units < complete).all()
    if not fitting or (candidate.units is None and len(units) < complete):
        raise TaskError(
            f"{len(units)} units and {len(groups)} groups do not fit the {complete} units of the baseline.",
            "Give the places of the units seen, and a group for each unit of the split.",
        )
    known = Losses(baseline.values[units], baseline.weights[units], baseline.tokens, units)
    if not np.array_equal(known.weights, candidate.weights):
        raise TaskError("The weights of the candidate's units are not the baseline's.", "Compare the same split.")
    _, labels = np.unique(groups[units], return_inverse=True)
    sizes, number = np.bincount(labels, known.weights).astype(np.float64), len(np.unique(groups))
    weight, total = float(baseline.weights.sum()), float(baseline.values.sum())
    return _Sample(candidate, known, labels, sizes, complete, number, weight, total)


def _error(share: float, looks: int) -> float:
    """What alpha spending gives a look at this share of the units, the looks being one part of looks + 1 apart."""
    before = max(0.0, share - 1 / (looks + 1))
    return ERROR * (share**2 - before**2)


def _ends(task: Task, sample: _Sample, kind: Kind, decision: str, error: float) -> Ends | None:
    """Between what, but for `error`, the number will be that the rule compares with its limit; None for a metric
    that is not known, and where no two units differ."""
    if kind != "relative" and is_proportion(task, sample.candidate) and is_proportion(task, sample.baseline):
        low, high = _proportion_ends(task, sample, decision, error)
        scale = 100.0 if kind == "points" else 1.0
        return scale * low, scale * high
    metric = _METRICS.get((type(task).reduce, type(task).reduce_without_each))
    return None if metric is None else _mean_ends(task, metric, sample, kind, decision, error)


_METRICS: dict[tuple[object, object], Metric] = {  # of the mean loss, by what computes them
    (Task.reduce, Task.reduce_without_each): np.asarray,
    (Perplexity.reduce, Perplexity.reduce_without_each): exp,
}


def _mean_ends(task: Task, metric: Metric, sample: _Sample, kind: Kind, decision: str, error: float) -> Ends | None:
    """Of a metric that is a function of the mean loss: the unknown is the mean paired difference of all units."""
    part = error / 2 if decision == "bound" else error
    difference, below, above = sample.mean(sample.candidate.values - sample.baseline.values, part)
    if above == 0 and sample.seen_units < sample.units:
        return None
    loss = loss_of(task, kind)
    ends: list[float] = []
    with np.errstate(all="ignore"):
        known = metric(np.array(sample.baseline_sum / sample.weight))
        for mean in (difference - below, difference + above):
            total = sample.baseline_sum + mean * sample.weight
            found = float(loss(metric(np.array(total / sample.weight)), known))
            reaches = [0.0]
            if decision == "bound":
                rest = sample.weight - sample.candidate.weights
                left_out = loss(
                    metric((total - sample.candidate.values) / rest),
                    metric((sample.baseline_sum - sample.baseline.values) / rest),
                )
                reaches = _bound_reaches(np.asarray(left_out), sample.units, part)
            ends += [found + reach for reach in reaches]
    ends = [inf if isnan(end) else end for end in ends]  # a perplexity beyond all floats
    return min(ends), max(ends)


def _bound_reaches(left_out: Floats, units: int, error: float) -> list[float]:
    """The least and the most that the bound will be above the loss: t times the jackknife's standard error.

    left_out: the loss without each of the units seen. The variance of those not yet seen, over that of those seen, is
    of Fisher's F, whose degrees of freedom are divided by (kurtosis - 1)/2 for tails that are not normal (Box,
    Biometrika 40, 1953).
    """
    seen, unseen = len(left_out), units - len(left_out)
    largest, shares = _shares(left_out - left_out.mean())
    squares = float(np.sum(shares**2))
    if squares == 0 or unseen == 0:
        ratios = [1.0, 1.0]
    else:
        kurtosis = seen * float(np.sum(shares**4)) / squares**2
        tails = max(1.0, (kurtosis - 1) / 2)
        ratios = [float(special.fdtri(unseen / tails, (seen - 1) / tails, p)) for p in (error, 1 - error)]
    t = float(special.stdtrit(units - 1, CONFIDENCE))
    return [t * largest * sqrt((units - 1) / units * squares * (1 + unseen * ratio / (seen - 1))) for ratio in ratios]


def _shares(deviations: Floats) -> tuple[float, Floats]:
    """The largest deviation and the share of it that each one is: powers of shares are within all floats."""
    largest = float(np.max(np.abs(deviations)))
    return largest, deviations / largest if largest > 0 else deviations


def _proportion_ends(task: Task, sample: _Sample, decision: str, error: float) -> Ends:
    """Of a share: the net number of units that got worse, and the number that changed, put into Tango's bound.

    Each is the wider of what the groups show and of what single units would: Wilson's interval with the finite
    population correction for those that changed, and its upper end as the variance of the net number. What was seen
    cannot be undone by the rest.
    """
    sign = -1.0 if task.higher_is_better else 1.0
    worse = sign * (sample.candidate.values - sample.baseline.values)
    seen, unseen = sample.seen_units, sample.units - sample.seen_units
    part = error / 2 if decision == "bound" else error
    z = -float(special.ndtri(part))
    net = float(worse.sum())
    least, most = _changed(sample, np.abs(worse), z, part)
    share, below, above = sample.mean(worse, part)
    plain = z * sqrt(most / sample.units / seen * unseen / sample.units)
    ends = []
    for expected, total in ((share - max(below, plain), least), (share + max(above, plain), most)):
        reached = min(max(sample.units * expected, net - unseen, -most), net + unseen, most)
        total = max(total, abs(reached))
        if decision == "bound":
            better = (total - reached) / 2
            ends.append(tango(reached + better, better, sample.units, float(special.ndtri(CONFIDENCE)))[1])
        else:
            ends.append(reached / sample.units)
    return ends[0], ends[1]


def _changed(sample: _Sample, changed: Floats, z: float, error: float) -> Ends:
    """How many units of the split will have changed, at least and at most."""
    seen, unseen = sample.seen_units, sample.units - sample.seen_units
    count = float(changed.sum())
    if unseen == 0:
        return count, count
    correction = unseen / sample.units
    low, high = wilson(count / correction, seen / correction, z)
    share, below, above = sample.mean(changed, error)
    least, most = sample.units * min(low, share - below), sample.units * max(high, share + above)
    return max(least, count), min(most, count + unseen)
