"""What a search may expect of every format at every site: an estimate, and what a study of sensitivity has measured."""

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np

from qslm.allocation import Allocation
from qslm.evaluation.estimates import Estimate, calibration_split, estimate_costs
from qslm.formats import FLOAT32, Format, canonical_json
from qslm.progress import Progress
from qslm.search import Goal, Options
from qslm.study.judging import ALONE, EXACT, Judge
from qslm.study.measuring import Measurements
from qslm.tasks.statistics import CONFIDENCE

Measured = dict[tuple[str, Format], tuple[float, float]]

_REACH = NormalDist().inv_cdf(CONFIDENCE)  # of a one-sided bound, in standard errors


def estimate(measurements: Measurements, options: Options, progress: Progress) -> Estimate:
    """What the ledger holds, or a new estimate that it holds from now on.

    It depends on what the options let a search round, and on the calibration text.
    """
    evaluator, task = measurements.evaluator, measurements.evaluator.task
    rounded = {site.name: [str(fmt) for fmt in options.formats] for site in options.matrices(evaluator.anatomy)}
    text = task.fingerprint(calibration_split(task))
    key = canonical_json({"formats": rounded, "quantizer": options.quantizer, "text": text})
    found = measurements.ledger.estimate(key)
    if found is None:
        evaluator.restore()
        found = estimate_costs(evaluator.model, evaluator.anatomy, task, options, progress).to_json()
        measurements.ledger.put_estimate(key, found)
    return Estimate.from_json(found)


def measured_alone(measurements: Measurements, options: Options, judge: Judge, goal: Goal) -> Measured:
    """The loss of each (site name, format) alone and its standard error, in nats as `Costs`, where
    `qslm.study.sensitivity` has measured it; nothing where vectors are rounded too, for they lose something as well.

    What a search itself has measured is left out: a study that goes on after a kill must expect what it expected.
    """
    base = options.uniform(measurements.evaluator.anatomy, FLOAT32)
    if any(fmt not in EXACT for fmt in base.formats):
        return {}
    rows = {row.key: row.evaluation for row in measurements.ledger.rows("search") if row.tier == ALONE}
    found: Measured = {}
    for (site, fmt), allocation in _alone(base, options).items() if rows else ():
        if allocation.key in rows:
            outcome = judge.judge(rows[allocation.key], allocation, ALONE, "").outcome
            loss, bound = goal.nats(np.array([outcome.loss, outcome.bound])).tolist()
            found[site, fmt] = loss, (bound - loss) / _REACH
    return found


def _alone(base: Allocation, options: Options) -> Mapping[tuple[str, Format], Allocation]:
    sites = options.matrices(base.anatomy)
    return {(site.name, fmt): base.replace([site.name], fmt) for site in sites for fmt in options.formats}
