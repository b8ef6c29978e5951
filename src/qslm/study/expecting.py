"""What a search may expect of every format at every site: an estimate, and what a study of sensitivity has measured."""

from collections.abc import Mapping
from pathlib import Path
from statistics import NormalDist

import numpy as np
from torch import nn

from qslm.allocation import Allocation
from qslm.anatomy import Anatomy
from qslm.calibration.text import calibration_split
from qslm.errors import AllocationError, ArtifactError, LedgerError, StudyError
from qslm.evaluation import Ledger
from qslm.evaluation.estimates import Estimate, estimate_costs
from qslm.evaluation.inputs import StoredInputs, collect_inputs, write_inputs
from qslm.formats import FLOAT32, Format, canonical_json
from qslm.formats.reading import file_digest
from qslm.progress import Progress
from qslm.quantizers import CALIBRATED, SCALING, Inputs, folds_of
from qslm.search import Goal, Options
from qslm.study import folder
from qslm.study.judging import ALONE, EXACT, Judge
from qslm.study.measuring import Measurements
from qslm.tasks.statistics import CONFIDENCE
from qslm.tasks.task import Task

Measured = dict[tuple[str, Format], tuple[float, float]]

_REACH = NormalDist().inv_cdf(CONFIDENCE)  # of a one-sided bound, in standard errors


def estimate(measurements: Measurements, options: Options, progress: Progress) -> Estimate:
    """What the ledger holds, or a new estimate that it holds from now on.

    It depends on what the options let a search round, and on the calibration text.
    """
    evaluator, task = measurements.evaluator, measurements.evaluator.task
    rounded = {site.name: [str(fmt) for fmt in options.formats] for site in options.matrices(evaluator.anatomy)}
    text = task.fingerprint(calibration_split(task))
    key = canonical_json({"formats": rounded, "quantizers": options.quantizers, "text": text})
    found = measurements.ledger.estimate(key)
    if found is None:
        evaluator.restore()
        found = estimate_costs(evaluator.model, evaluator.anatomy, task, options, progress, evaluator.inputs).to_json()
        measurements.ledger.put_estimate(key, found)
    return Estimate.from_json(found)


def inputs_of(
    run: Path, ledger: Ledger, model: nn.Module, anatomy: Anatomy, task: Task, options: Options, progress: Progress
) -> Inputs | None:
    """What calibrated quantizers look at, in the run folder: as it is there, or collected now; None without them.

    What was measured with other statistics is not gone on with: raises LedgerError. Raises AllocationError where a
    quantizer scales columns and the network does not say where such scales fold.
    """
    scaling = ", ".join(sorted(set(options.quantizers) & SCALING))
    if scaling and not folds_of(model, anatomy):
        raise AllocationError(
            f"{scaling} scales columns, and {type(model).__name__} does not say what takes the scales up.",
            "Give the network a method folds() as that of SpikeGPT, or take another quantizer: gptq, clip.",
        )
    if not set(options.quantizers) & set(CALIBRATED):
        return None
    meaning, path = calibration_meaning(task), run / folder.INPUTS
    recorded = ledger.estimate(folder.INPUTS)
    if recorded is None or not path.is_file() or file_digest(path) != recorded:
        collected = collect_inputs(model, anatomy, task, progress)
        _tell_inputs(collected, calibration_split(task), progress)
        digest = write_inputs(path, collected, meaning)
        if recorded not in (None, digest):
            raise LedgerError(
                f"{run} holds evaluations of weights that were rounded by other statistics of the calibration text.",
                "Give the same calibration text and threads as before, or name another folder.",
            )
        if recorded is None:
            ledger.put_estimate(folder.INPUTS, digest)
    found = StoredInputs(path)
    if found.meaning != meaning:
        raise LedgerError(
            f"{run} holds evaluations of weights that were rounded by the statistics of another calibration text.",
            "Give the same calibration text as before (--reconstruct looks at more), or name another folder.",
        )
    return found


def _tell_inputs(inputs: Inputs, split: str, progress: Progress) -> None:
    """Say of how many inputs the statistics are, and what is doubtful about them."""
    counts = [found.count for found in inputs.values()]
    few = [name for name, found in inputs.items() if found.count < len(found.moment)]
    if counts:
        progress.message(f"statistics: what {len(counts)} matrices see, {min(counts):,} inputs of each or more")
    if few:
        progress.message(f"warning: {few[0]} and {len(few) - 1} more have seen fewer inputs than they have columns")
    if split == "search":
        progress.message("warning: there is no calibration text, so the statistics are of the search split")


def calibration_meaning(task: Task) -> str:
    """What names the calibration text of a task."""
    return f"{task.name} {task.fingerprint(calibration_split(task))}"


def stored_inputs(run: Path, allocation: Allocation) -> Inputs | None:
    """The statistics that a study has left in its folder, where `allocation` was rounded by them. Raises StudyError."""
    if not set(allocation.quantizers) & set(CALIBRATED):
        return None
    path = run / folder.INPUTS
    try:
        with Ledger.read(run / folder.LEDGER) as ledger:
            if ledger.estimate(folder.INPUTS) != file_digest(path):
                raise StudyError(f"{path} is not as the study has written it.", folder.AGAIN)
        return StoredInputs(path)
    except ArtifactError as error:
        raise StudyError(error.problem, folder.AGAIN) from error


def measured_alone(measurements: Measurements, options: Options, judge: Judge, goal: Goal) -> Measured:
    """The loss of each (site name, format) alone and its standard error, in nats as `Costs`, where
    `qslm.study.sensitivity` has measured it; nothing where vectors are rounded too, for they lose something as well,
    or where there are several quantizers.

    What a search itself has measured is left out: a study that goes on after a kill must expect what it expected.
    """
    base = options.uniform(measurements.evaluator.anatomy, FLOAT32)
    if len(options.quantizers) > 1 or any(fmt not in EXACT for fmt in base.formats):
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
