"""Other questions to a study that was made: a selection from its ledger alone, with no new evaluation."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from qslm.allocation import Allocation
from qslm.anatomy import Anatomy
from qslm.budget import Budget, parse_loss
from qslm.errors import BudgetError, QslmError, StudyError
from qslm.evaluation import Evaluation, Ledger, Row
from qslm.study import folder
from qslm.study.judging import BASELINE, Judge, Judged, check_kind, check_sample
from qslm.study.refusal import nothing_accepted
from qslm.study.selection import Pair, Selection, Stopped, make_selection
from qslm.tasks.perplexity import Perplexity
from qslm.tasks.task import Losses, Task, as_task
from qslm.units import parse_memory


def select(
    run: Path | str,
    *,
    max_memory: str | int | None = None,
    max_drop: str | float | None = None,
    max_rise: str | float | None = None,
    prefer: Literal["smallest", "score"] | None = None,
    mu: float | None = None,
    decision: Literal["bound", "point"] | None = None,
    task: Any = None,
) -> Selection:
    """Select again from everything that a study has measured; what is not given is as in the study.

    `max_memory` is a text such as `30MB` or `14%`, or bytes; `max_drop` points of accuracy, `max_rise` a rise
    such as `1.0` or `2%`. Giving `mu` asks for the best by score, unless `prefer` says otherwise. `task` is needed
    only when its metric is neither a weighted mean nor a perplexity. Writes nothing. Raises BudgetError on a budget
    that the metric cannot have or no evaluation keeps, StudyError when nothing is accepted or the folder holds no
    whole study, LedgerError.
    """
    run = Path(run)
    study = folder.read_json(run / folder.STUDY)
    anatomy = folder.anatomy_from_dict(study.get("anatomy"))
    try:
        budget = _budget(study["budget"], anatomy, max_memory, max_drop, max_rise, prefer, mu, decision)
        task = recorded_task(study["task"]) if task is None else as_task(task)
        checkpoint_bytes = int(study["checkpoint"]["bytes"])
    except (KeyError, TypeError, ValueError) as error:
        raise StudyError(f"{run / folder.STUDY} lacks something: {error}.", folder.AGAIN) from error
    with Ledger.read(run / folder.LEDGER) as ledger:
        rows = [row for row in ledger.rows("search") if row.evaluation.complete]
        reported = {row.key: row.evaluation for row in ledger.rows("report") if row.evaluation.complete}
    baseline = _baseline(rows, task)
    check_kind(task, budget, baseline.losses)
    check_sample(task, budget, baseline.losses)
    judge = Judge(task, budget, baseline, checkpoint_bytes)
    judged = [_judged(row, anatomy, judge) for row in rows]
    _check_measured(judge, judged)
    stopped = study.get("stopped")
    if stopped not in (None, *get_args(Stopped)):
        raise StudyError(f"{run / folder.STUDY} says that {stopped!r:.40} stopped the study.", folder.AGAIN)
    chosen = judge.choose(judged)
    if chosen is None:
        raise nothing_accepted(judge, judged, stopped)
    selection = make_selection(
        run,
        task,
        budget,
        chosen,
        Pair(baseline, chosen.evaluation),
        _report(reported, chosen, anatomy),
        checkpoint_bytes,
        [*(row.evaluation for row in rows), *reported.values()],
        stopped,
    )
    return replace(selection, packed=_packed(run, selection))


def _packed(run: Path, selection: Selection) -> str | None:
    """The sha256 of the packed model, where it is of the selected allocation."""
    if not (run / folder.SELECTION).is_file():
        return None
    try:
        return folder.packed_digest(run, folder.read_json(run / folder.SELECTION), selection.allocation.key)
    except (KeyError, TypeError) as error:
        raise StudyError(f"{run / folder.SELECTION} lacks something: {error}.", folder.AGAIN) from error


def _budget(
    stored: dict[str, Any],
    anatomy: Anatomy,
    max_memory: str | int | None,
    max_drop: str | float | None,
    max_rise: str | float | None,
    prefer: Literal["smallest", "score"] | None,
    mu: float | None,
    decision: Literal["bound", "point"] | None,
) -> Budget:
    """The study's budget with what was given in place of its own."""
    max_bytes, max_loss, kind = stored["max_bytes"], stored["max_loss"], stored["kind"]
    if max_memory is not None:
        text = f"{max_memory}B" if isinstance(max_memory, int) else max_memory
        max_bytes = parse_memory(text, anatomy.float32_bytes)
    if max_drop is not None or max_rise is not None:
        max_loss, kind = parse_loss(max_drop, max_rise)
    return Budget(
        max_bytes,
        max_loss,
        kind,
        decision or stored["decision"],
        stored["prefer"] if prefer is None and mu is None else prefer,
        stored["mu"] if mu is None else mu,
    )


def _check_measured(judge: Judge, judged: Sequence[Judged]) -> None:
    """Refuse a memory budget below everything measured that keeps the quality limit and saves. Raises BudgetError."""
    budget = judge.budget
    sizes = [one.evaluation.footprint_file for one in judged if one.verdict.quality_ok and one.tier != BASELINE]
    kept = [size for size in sizes if size < judge.checkpoint_bytes]
    if budget.max_bytes is not None and kept and min(kept) > budget.max_bytes:
        raise BudgetError(
            f"The smallest model file measured so far that keeps the quality limit has {min(kept):,} bytes, the budget "
            f"is {budget.max_bytes:,}.",
            f"Give --max-memory {min(kept)}B, or search again with this budget: a search can go lower.",
        )


def _baseline(rows: Sequence[Row], task: Task) -> Evaluation:
    found = next((row.evaluation for row in rows if row.tier == BASELINE), None)
    if found is None:
        raise StudyError("The study has not measured its baseline yet.", "Let the search run on.")
    if not math.isclose(task.reduce(found.losses), found.value, rel_tol=1e-9):
        raise StudyError(
            f"The study measured {found.metric} {found.value}, but its losses give {task.reduce(found.losses)}.",
            "Give the task that it was made with: select(run, task=...).",
        )
    return found


def _judged(row: Row, anatomy: Anatomy, judge: Judge) -> Judged:
    try:
        allocation = Allocation.from_json(anatomy, row.allocation)
    except QslmError as error:
        raise StudyError(f"{folder.STUDY} and the ledger do not fit: {error.problem}", folder.AGAIN) from error
    return judge.judge(row.evaluation, allocation, row.tier, row.note)


def _report(reported: dict[str, Evaluation], chosen: Judged, anatomy: Anatomy) -> Pair | None:
    baseline = reported.get(Allocation.float32(anatomy).key)
    selected = reported.get(chosen.allocation.key)
    return None if baseline is None or selected is None else Pair(baseline, selected)


class RecordedTask(Task):
    """The metric of a task whose data is not at hand: a weighted mean of the losses."""

    def __init__(self, name: str, metric: str, higher_is_better: bool, unit: str) -> None:
        self.name, self.metric, self.higher_is_better, self.unit = name, metric, higher_is_better, unit

    def batches(self, split: str) -> Sequence[Any]:
        """Raise StudyError: a recorded task has no data."""
        raise StudyError(f"The data of {self.name} was not recorded.", "Make the task itself.")

    def losses(self, model: nn.Module, batch: Any) -> Losses:
        """Raise StudyError: a recorded task measures nothing."""
        raise StudyError(f"The data of {self.name} was not recorded.", "Make the task itself.")


class RecordedPerplexity(RecordedTask, Perplexity):
    """The perplexity, exp of the weighted mean."""


def recorded_task(content: dict[str, Any]) -> RecordedTask:
    """The task that study.json describes. Raises KeyError, TypeError."""
    kind = RecordedPerplexity if content["metric"] == "perplexity" else RecordedTask
    return kind(str(content["name"]), str(content["metric"]), bool(content["higher_is_better"]), str(content["unit"]))
