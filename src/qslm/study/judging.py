"""Evaluations under a budget: which are accepted, and which one is selected."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from qslm.allocation import Allocation
from qslm.budget import Budget, Candidate, Verdict, spell_loss
from qslm.errors import BudgetError
from qslm.evaluation import Evaluation
from qslm.formats import FLOAT32, SIGN
from qslm.search import Outcome
from qslm.tasks.statistics import Comparison, compare, is_proportion
from qslm.tasks.task import Losses, Task

EXACT = (FLOAT32, SIGN)  # formats that change no output
BASELINE = "baseline"  # the tier of the float network's own evaluation


@dataclass(frozen=True, eq=False)
class Judged:
    """One evaluation on the search split: how it compares with the baseline, and the budget's verdict."""

    allocation: Allocation
    tier: str
    note: str
    evaluation: Evaluation
    comparison: Comparison
    verdict: Verdict

    @property
    def memory_ratio(self) -> float:
        """m_q / m_o of Eq. 1: tensor bytes against those of float32."""
        return self.allocation.footprint().tensors / self.allocation.anatomy.float32_bytes

    @property
    def outcome(self) -> Outcome:
        """What a strategy is told."""
        return Outcome(self.verdict.quality_ok, self.verdict.memory_ok, self.comparison.loss)

    @property
    def candidate(self) -> Candidate:
        """What a budget must know."""
        return Candidate(
            self.allocation.key,
            self.evaluation.footprint_file,
            self.memory_ratio,
            self.evaluation.value,
            self.comparison.loss,
            self.comparison.bound,
        )

    def to_dict(self, number: int) -> dict[str, Any]:
        """The evaluation as a line of study.json."""
        return {
            "number": number,
            "key": self.allocation.key,
            "tier": self.tier,
            "note": self.note,
            "value": self.evaluation.value,
            "low": self.evaluation.low,
            "high": self.evaluation.high,
            "bytes": self.evaluation.footprint_file,
            "memory_ratio": self.memory_ratio,
            "loss": self.comparison.loss,
            "loss_low": self.comparison.low,
            "loss_high": self.comparison.high,
            "bound": self.comparison.bound,
            "quality_ok": self.verdict.quality_ok,
            "memory_ok": self.verdict.memory_ok,
        }


def check_kind(task: Task, budget: Budget, losses: Losses | None = None) -> None:
    """Refuse a limit in a unit that the metric has not: points are of a share, and a share has nothing else.

    Accuracy is known as a share by its name, another metric once it has `losses`. Raises BudgetError.
    """
    if budget.max_loss is None:
        return
    if budget.kind == "points":
        if not task.higher_is_better:
            remedy = "Limit its rise: --max-rise 1.0 or --max-rise 2%."
            raise BudgetError(f"The {task.metric} is no share: it has no points to drop.", remedy)
    elif task.higher_is_better and (task.metric == "accuracy" or (losses is not None and is_proportion(task, losses))):
        raise BudgetError(
            f"The {task.metric} does not rise as a model gets worse: it drops, by points.",
            "Limit its drop: --max-drop 2, which is 2 points of 100.",
        )


def check_sample(task: Task, budget: Budget, losses: Losses) -> None:
    """Refuse a limit that a sample of this size cannot show, even of a network without any loss. Raises BudgetError.

    No sample shows a limit of 0: what keeps that is exact by its formats.
    """
    if not budget.max_loss:
        return
    bound = compare(task, losses, losses, budget.kind).bound
    if not budget.verdict(0, 0.0, bound).quality_ok:
        least = spell_loss(budget.kind, ceil(100 * bound) / 100, signed=False)
        raise BudgetError(
            f"{len(losses.values):,} {task.unit}s cannot show a loss of at most "
            f"{spell_loss(budget.kind, budget.max_loss, signed=False)}: without any loss their bound is {least}.",
            f"Give more {task.unit}s, allow {least}, or judge by the point alone: --decision point.",
        )


def paired(
    task: Task, budget: Budget, baseline: Evaluation, evaluation: Evaluation, allocation: Allocation
) -> Comparison:
    """Compare an evaluation with the baseline of the same split, in the unit of the budget.

    What is exact by its formats, float32 and signs alone, loses nothing: that needs no sample, so its bound is 0 too.
    """
    if all(fmt in EXACT for _, fmt in allocation.items()):
        return Comparison(0.0, 0.0, 0.0, 0.0)
    return compare(task, evaluation.losses, baseline.losses, budget.kind)


@dataclass(frozen=True, eq=False)
class Judge:
    """What the evaluations of the search split are judged by.

    Whatever the budget says, the model file must have fewer bytes than the checkpoint's: a selection saves.
    """

    task: Task
    budget: Budget
    baseline: Evaluation
    checkpoint_bytes: int

    @property
    def most_bytes(self) -> int:
        """The largest model file that is accepted."""
        below = self.checkpoint_bytes - 1
        return below if self.budget.max_bytes is None else min(below, self.budget.max_bytes)

    def judge(self, evaluation: Evaluation, allocation: Allocation, tier: str, note: str) -> Judged:
        """Compare an evaluation with the baseline and ask the budget about it."""
        found = paired(self.task, self.budget, self.baseline, evaluation, allocation)
        verdict = self.budget.verdict(evaluation.footprint_file, found.loss, found.bound)
        verdict = replace(verdict, memory_ok=evaluation.footprint_file <= self.most_bytes)
        return Judged(allocation, tier, note, evaluation, found, verdict)

    def choose(self, judged: Iterable[Judged]) -> Judged | None:
        """The selected one of the accepted evaluations; never the float network, which is the baseline."""
        pool = {one.allocation.key: one for one in judged if one.verdict.accepted and one.tier != BASELINE}
        candidates = [one.candidate for one in pool.values()]
        found = self.budget.select(candidates, higher_is_better=self.task.higher_is_better)
        return None if found is None else pool[found.key]
