"""A study as its run folder tells it: what was asked, and everything that was measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from torch import nn

from qslm.allocation import Allocation
from qslm.anatomy import Anatomy
from qslm.budget import Budget
from qslm.errors import QslmError, StudyError
from qslm.evaluation import Evaluation, Ledger, Row
from qslm.formats import Format
from qslm.search import Options
from qslm.study import folder
from qslm.study.judging import BASELINE, Judge, Judged
from qslm.study.selection import Pair, Stopped
from qslm.tasks.perplexity import Perplexity
from qslm.tasks.task import Losses, Task, Units, as_task


@dataclass(frozen=True, eq=False)
class Recorded:
    """What study.json and the ledger hold; `rows` are of the search split, `reported` by key of the report split.

    looks: None where the study lets no evaluation end early. groups: None where every unit is a group of its own.
    """

    run: Path
    study: dict[str, Any]
    anatomy: Anatomy
    task: Task
    budget: Budget
    checkpoint_bytes: int
    stopped: Stopped | None
    groups: Units | None
    looks: int | None
    rows: list[Row]
    reported: dict[str, Evaluation]

    @classmethod
    def read(cls, run: Path, task: Any = None) -> "Recorded":
        """Read a run folder, also while a study writes to it. Raises StudyError or LedgerError.

        `task` is needed only when its metric is neither a weighted mean nor a perplexity.
        """
        study = folder.read_json(run / folder.STUDY)
        anatomy = folder.anatomy_from_dict(study.get("anatomy"))
        try:
            task = recorded_task(study["task"], source_of(study["identity"])) if task is None else as_task(task)
            asked = Budget(**study["budget"]), int(study["checkpoint"]["bytes"]), _stopped(study["stopped"])
            groups, looks = study["early"]["groups"], study["early"]["looks"]
            early = None if groups is None else np.array(groups, np.int64), None if looks is None else int(looks)
        except (KeyError, TypeError, ValueError) as error:
            raise StudyError(f"{run / folder.STUDY} lacks something: {error}.", folder.AGAIN) from error
        with Ledger.read(run / folder.LEDGER) as ledger:
            rows = ledger.rows("search")
            reported = {row.key: row.evaluation for row in ledger.rows("report") if row.evaluation.complete}
            found = ledger.identity
        try:
            folder.check_unchanged(study, anatomy, found)
        except (KeyError, TypeError) as error:
            raise StudyError(f"{run / folder.STUDY} or the ledger lacks something: {error}.", folder.AGAIN) from error
        return cls(run, study, anatomy, task, *asked, *early, rows, reported)

    def options(self) -> Options:
        """What the search was told beside its budget. Raises StudyError."""
        try:
            told = dict(self.study["options"])
            formats = {
                "vectors": Format.parse(told["vectors"]),
                "templates": tuple(Format.parse(text) for text in told["templates"]),
            }
            lists = {name: tuple(told[name]) for name in ("precisions", "quantizers")}
            return Options(**{**told, **formats, **lists})
        except (KeyError, TypeError, ValueError, QslmError) as error:
            raise StudyError(f"{self.run / folder.STUDY} has unusable options: {error}.", folder.AGAIN) from error

    @property
    def baseline(self) -> Evaluation | None:
        """The evaluation of the float network on the search split, where it was made."""
        return next((row.evaluation for row in self.rows if row.tier == BASELINE), None)

    def known_baseline(self) -> Evaluation:
        """The baseline. Raises StudyError where it is not there, or of another metric than the task's."""
        found = self.baseline
        if found is None:
            raise StudyError("The study has not measured its baseline yet.", "Let the search run on.")
        if not math.isclose(self.task.reduce(found.losses), found.value, rel_tol=1e-9):
            raise StudyError(
                f"The study measured {found.metric} {found.value}, but its losses give "
                f"{self.task.reduce(found.losses)}.",
                "Give the task that it was made with: select(run, task=...).",
            )
        return found

    def judge(self, budget: Budget) -> Judge:
        """Who judges the evaluations under a budget. Raises StudyError as `known_baseline` does."""
        baseline = self.known_baseline()
        units = len(baseline.losses.values)
        judge = Judge(self.task, budget, baseline, self.checkpoint_bytes)
        if self.looks is None:
            return judge
        groups = np.arange(units) if self.groups is None else self.groups
        if groups.shape != (units,):
            raise StudyError(f"{self.run / folder.STUDY} has no group for each of {units} units.", folder.AGAIN)
        return replace(judge, groups=groups, looks=self.looks)

    def judged(self, judge: Judge) -> list[Judged]:
        """Every evaluation of the search split under the judge's budget. Raises StudyError."""
        return [judge.judge(row.evaluation, self._allocation(row), row.tier, row.note) for row in self.rows]

    def report(self, chosen: Judged) -> Pair | None:
        """The evaluations of the report split, where both were made."""
        baseline = self.reported.get(Allocation.float32(self.anatomy).key)
        selected = self.reported.get(chosen.allocation.key)
        return None if baseline is None or selected is None else Pair(baseline, selected)

    def _allocation(self, row: Row) -> Allocation:
        try:
            return Allocation.from_json(self.anatomy, row.allocation)
        except QslmError as error:
            raise StudyError(f"{folder.STUDY} and the ledger do not fit: {error.problem}", folder.AGAIN) from error


def _stopped(value: Any) -> Stopped | None:
    if value not in (None, *get_args(Stopped)):
        raise ValueError(f"{value!r:.40} stopped the study")
    return value


class RecordedTask(Task):
    """The metric of a task whose data is not at hand: a weighted mean of the losses."""

    def __init__(self, name: str, metric: str, higher_is_better: bool, unit: str, source: str) -> None:
        self.name, self.metric, self.higher_is_better, self.unit = name, metric, higher_is_better, unit
        self.source = source

    def batches(self, split: str) -> Sequence[Any]:
        """Raise StudyError: a recorded task has no data."""
        raise StudyError(f"The data of {self.name} was not recorded.", "Make the task itself.")

    def losses(self, model: nn.Module, batch: Any) -> Losses:
        """Raise StudyError: a recorded task measures nothing."""
        raise StudyError(f"The data of {self.name} was not recorded.", "Make the task itself.")


class RecordedPerplexity(RecordedTask, Perplexity):
    """The perplexity, exp of the weighted mean."""


def recorded_task(content: Mapping[str, Any], source: str) -> RecordedTask:
    """The task that study.json describes, with the source of its data. Raises KeyError, TypeError."""
    kind = RecordedPerplexity if content["metric"] == "perplexity" else RecordedTask
    name, metric, unit = (str(content[key]) for key in ("name", "metric", "unit"))
    return kind(name, metric, bool(content["higher_is_better"]), unit, source)


def source_of(identity: Mapping[str, Any]) -> str:
    """Where the data was found, as the identity of a study says; empty where the task does not know it."""
    try:
        return str(identity["facts"]["source"])
    except KeyError:
        return ""
