"""Evaluations under a budget: which are accepted, and which one is selected."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, inf, isfinite
from typing import Any

from qslm.allocation import Allocation
from qslm.budget import Budget, Candidate, Verdict, spell_loss
from qslm.errors import BudgetError, StudyError
from qslm.evaluation import Evaluation
from qslm.formats import FLOAT32, SIGN
from qslm.search import Outcome
from qslm.tasks.statistics import Comparison, compare, is_proportion
from qslm.tasks.task import Losses, Task
from qslm.units import format_bytes

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


def judge(
    task: Task,
    budget: Budget,
    baseline: Evaluation,
    evaluation: Evaluation,
    allocation: Allocation,
    tier: str,
    note: str,
) -> Judged:
    """Compare an evaluation with the baseline of the same split and ask the budget about it.

    What is exact by its formats, float32 and signs alone, loses nothing: that needs no sample, so its bound is 0 too.
    """
    comparison = compare(task, evaluation.losses, baseline.losses, budget.kind)
    if all(fmt in EXACT for _, fmt in allocation.items()):
        comparison = Comparison(0.0, 0.0, 0.0, 0.0)
    verdict = budget.verdict(evaluation.footprint_file, comparison.loss, comparison.bound)
    return Judged(allocation, tier, note, evaluation, comparison, verdict)


def choose(budget: Budget, judged: Sequence[Judged], higher_is_better: bool) -> Judged:
    """The selected one of the accepted evaluations; the float network only where nothing else is accepted.

    Raises StudyError, naming the closest, when none is accepted.
    """
    for pool in ([one for one in judged if one.tier != BASELINE], judged):
        found = budget.select([one.candidate for one in pool], higher_is_better=higher_is_better)
        if found is not None:
            return next(one for one in pool if one.allocation.key == found.key)
    raise nothing_accepted(budget, judged)


def nothing_accepted(budget: Budget, judged: Iterable[Judged]) -> StudyError:
    """The error that names the evaluation which came closest to the budget."""
    judged = [one for one in judged if one.tier != BASELINE]
    closest = min(judged, key=lambda one: _excess(budget, one), default=None)
    if closest is None:
        return StudyError("The search made no evaluation.", "Allow more of them (--limit).")
    loss, bound = closest.comparison.loss, closest.comparison.bound
    limits = [] if budget.max_loss is None else [f"a loss of at most {_spell(budget, budget.max_loss)}"]
    limits += [] if budget.max_bytes is None else [f"{format_bytes(budget.max_bytes)} at most"]
    return StudyError(
        f"None of {len(judged)} evaluations keeps the budget ({', '.join(limits)}); the closest is "
        f"{closest.note!r}: a loss of {_spell(budget, loss)} (95 % bound {_spell(budget, bound)}), "
        f"{format_bytes(closest.evaluation.footprint_file)}.",
        "Allow more memory or more loss, or give groups or another quantizer. What was measured is kept.",
    )


def _excess(budget: Budget, one: Judged) -> tuple[float, float]:
    """How far an evaluation is over the limits, as shares of them; then its loss."""
    decisive = one.comparison.bound if budget.decision == "bound" else one.comparison.loss
    over = 0.0
    if budget.max_loss is not None:
        over += max(0.0, decisive - budget.max_loss) / max(budget.max_loss, 1e-3)
    if budget.max_bytes is not None:
        over += max(0.0, one.evaluation.footprint_file / max(budget.max_bytes, 1) - 1)
    return over, one.comparison.loss if isfinite(one.comparison.loss) else inf


def _spell(budget: Budget, loss: float) -> str:
    return spell_loss(budget.kind, loss, signed=False)
