"""Where a study stands, at any moment: from its run folder alone, also while it runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qslm.budget import Budget
from qslm.errors import BudgetError, StudyError
from qslm.locking import is_locked
from qslm.study import folder
from qslm.study.judging import BASELINE
from qslm.study.recorded import Recorded
from qslm.study.reselect import answer
from qslm.study.selection import Selection, Stopped

State = Literal["running", "finished", "nothing accepted", "interrupted"]
LAST = 5  # evaluations by whose seconds the time left is told


@dataclass(frozen=True, eq=False)
class Status:
    """A study as far as it has come.

    state: "running" while a process works in the folder, "finished" with a packed answer, "nothing accepted" where the
    search has ended without one, else "interrupted": the same command goes on. evaluations: of the last search in the
    folder, without the baseline; at most `maximum_evaluations`, None before that is known. seconds: spent on all that
    was measured in the folder. seconds_left: if all evaluations come, each as long as the last ones, with those on the
    report split; None before it can be told. best: what `select` answers under the study's budget; where it has no
    answer, `why`.
    """

    run: Path
    state: State
    checkpoint: str
    task: str
    budget: Budget
    strategy: str
    evaluations: int
    maximum_evaluations: int | None
    stopped: Stopped | None
    seconds: float
    seconds_left: float | None
    best: Selection | None
    why: str

    def to_dict(self) -> dict[str, Any]:
        """The status as JSON values, still with numbers that may be infinite."""
        content = {name: value for name, value in vars(self).items() if name not in ("run", "best")}
        best = None if self.best is None else self.best.to_dict()
        return {**content, "budget": vars(self.budget), "best": best}


def status(run: Path | str, *, task: Any = None) -> Status:
    """Say where the study of a run folder stands; writes nothing and does not disturb a search that runs.

    `task` is needed only when its metric is neither a weighted mean nor a perplexity: without it there is no best so
    far. Raises StudyError or LedgerError when the folder holds no study, or a damaged one.
    """
    run = Path(run)
    known = Recorded.read(run, task)
    best, why = _best(known)
    try:
        state = _state(known, is_locked(run), best)
        strategy, most = str(known.study["options"]["strategy"]), known.study["maximum_evaluations"]
        done = sum(line["tier"] != BASELINE for line in known.study["tiers"])
        over = state in ("finished", "nothing accepted")
        remaining = None if most is None else int(most) - done
        left = 0.0 if over else None if remaining is None else _seconds_left(known, remaining)
        checkpoint = str(known.study["checkpoint"]["name"])
    except (KeyError, TypeError, ValueError) as error:
        raise StudyError(f"{run / folder.STUDY} lacks something: {error}.", folder.AGAIN) from error
    except OSError as error:
        raise StudyError(f"Cannot look at {run}: {error.strerror}.", "Give a folder that can be read.") from error
    spent = sum(one.seconds for one in [*(row.evaluation for row in known.rows), *known.reported.values()])
    asked = known.budget, strategy, done, most, known.stopped
    return Status(run, state, checkpoint, known.task.name, *asked, spent, left, best, why)


def _best(known: Recorded) -> tuple[Selection | None, str]:
    """What `select` answers under the study's own budget, or why it answers nothing."""
    try:
        return answer(known, known.budget), ""
    except (BudgetError, StudyError) as error:
        return None, error.problem


def _state(known: Recorded, running: bool, best: Selection | None) -> State:
    if running:
        return "running"
    if not known.study["ended"]:
        return "interrupted"
    if (known.run / folder.SELECTION).is_file():
        return "finished"
    return "nothing accepted" if best is None else "interrupted"


def _seconds_left(known: Recorded, evaluations: int) -> float | None:
    """The evaluations that may still come, each as long as the last ones took, and both on the report split."""
    report = max(2 - len(known.reported), 0) * float(known.study["report_seconds"] or 0.0)
    if known.study["ended"]:
        return report
    measured = [row for row in known.rows if row.tier != BASELINE] or known.rows
    seconds = [row.evaluation.seconds for row in measured[-LAST:]]
    return max(evaluations, 0) * float(np.mean(seconds)) + report if seconds else None
