"""What study.json says of a study, beside the ledger."""

import resource
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from qslm.allocation import Allocation
from qslm.anatomy import Anatomy
from qslm.budget import Budget
from qslm.search import Options
from qslm.study import folder
from qslm.study.checks import Check
from qslm.study.judging import BASELINE, Judged
from qslm.study.measuring import Measurements
from qslm.study.selection import Stopped
from qslm.study.subject import Subject
from qslm.tasks.task import Task


@dataclass(eq=False)
class Record:
    """A study as far as it has come.

    groups, looks: what evaluations that ended early are judged by; no groups where every unit is one of its own.
    ended: whether the search is over, so that at most reporting and packing are left.
    """

    subject: Subject
    task: Task
    anatomy: Anatomy
    budget: Budget
    options: Options
    checks: list[Check] = field(default_factory=list)
    groups: list[int] | None = None
    looks: int | None = None
    estimate_work: int = 0
    maximum_evaluations: int | None = None
    report_seconds: float | None = None  # that one evaluation on the report split is expected to take
    stopped: Stopped | None = None
    ended: bool = False

    def to_dict(self, measurements: Measurements, judged: Iterable[Judged]) -> dict[str, Any]:
        """The content of study.json."""
        return {
            "version": folder.VERSION,
            "checkpoint": self.subject.to_dict(),
            "task": self._task(measurements),
            "budget": vars(self.budget),
            "options": self.options.to_dict(),
            "identity": measurements.ledger.identity,
            "checks": [vars(check) for check in self.checks],
            "early": {"groups": self.groups, "looks": self.looks},
            "estimate_work": self.estimate_work,
            "maximum_evaluations": self.maximum_evaluations,
            "report_seconds": self.report_seconds,
            "stopped": self.stopped,
            "ended": self.ended,
            "anatomy": folder.anatomy_to_dict(self.anatomy),
            "tiers": [self._line(number, one) for number, one in enumerate(judged)],
        }

    def _line(self, number: int, one: Judged) -> dict[str, Any]:
        """An evaluation; the baseline is the checkpoint's own file, whatever its tensors would take in float32."""
        line = one.to_dict(number)
        return {**line, "bytes": self.subject.file_bytes} if one.tier == BASELINE else line

    def _task(self, measurements: Measurements) -> dict[str, Any]:
        splits = {}
        for split in ("search", "report"):
            found = measurements.known(Allocation.float32(self.anatomy), split)
            if found is not None:
                splits[split] = {"units": len(found.losses.values), "tokens": found.tokens, **found.details}
        task = self.task
        described = {"name": task.name, "metric": task.metric, "higher_is_better": task.higher_is_better}
        return {**described, "unit": task.unit, "splits": splits}


def peak_memory() -> int:
    """The most bytes that this process has had in memory so far."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024
