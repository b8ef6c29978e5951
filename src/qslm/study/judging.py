"""Evaluations under a budget: which are accepted, and which one is selected."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np

from qslm.allocation import Allocation
from qslm.budget import Budget, Candidate, Decision, Verdict
from qslm.evaluation import Evaluation
from qslm.evaluation.parts import Stop
from qslm.formats import FLOAT32, SIGN
from qslm.search import Outcome
from qslm.tasks.foretelling import foretell
from qslm.tasks.statistics import Comparison, Kind, compare
from qslm.tasks.task import Losses, Task, Units

EXACT = (FLOAT32, SIGN)  # formats that change no output
LEAST_UNITS = 2  # that an interval needs; no evaluation ends with fewer
BASELINE = "baseline"  # the tier of the float network's own evaluation
ALONE = "sensitivity-study"  # the tier of one part rounded alone


@dataclass(frozen=True, eq=False)
class Judged:
    """One evaluation on the search split: how it compares with the baseline, and the budget's verdict.

    expected: whether the limit of quality is kept or, where the verdict is undecided, expected to be.
    """

    allocation: Allocation
    tier: str
    note: str
    evaluation: Evaluation
    comparison: Comparison
    verdict: Verdict
    expected: bool

    @property
    def complete(self) -> bool:
        """Whether all units were measured, so that nothing about it is foretold."""
        return self.evaluation.complete

    @property
    def memory_ratio(self) -> float:
        """m_q / m_o of Eq. 1: tensor bytes against those of float32."""
        return self.allocation.footprint().tensors / self.allocation.anatomy.float32_bytes

    @property
    def outcome(self) -> Outcome:
        """What a strategy is told."""
        return Outcome(self.expected, self.verdict.memory_ok, self.comparison.loss, self.comparison.bound)

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
            self.allocation.activation_bits,
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
            "complete": self.evaluation.complete,
            "units": len(self.evaluation.losses.values),
            "undecided": self.verdict.undecided,
            "quality_ok": self.verdict.quality_ok,
            "memory_ok": self.verdict.memory_ok,
        }


def paired(
    task: Task, budget: Budget, baseline: Evaluation, evaluation: Evaluation, allocation: Allocation
) -> Comparison:
    """Compare an evaluation with the baseline of the same split, in the unit of the budget.

    What is exact by its formats, float32 and signs alone, loses nothing: that needs no sample, so its bound is 0 too.
    Of an evaluation that ended early it is what is expected of the whole split: the loss on the units seen, and the
    spread that as many units as there are would have. It tells a strategy where to go, and which coarser allocations
    need not be measured.
    """
    if all(fmt in EXACT for _, fmt in allocation.items()):
        return Comparison(0.0, 0.0, 0.0, 0.0)
    units = evaluation.losses.units
    if evaluation.complete or units is None:
        return compare(task, evaluation.losses, baseline.losses, budget.kind)
    known = baseline.losses.take(units)
    found = compare(task, evaluation.losses, known, budget.kind)
    relative = budget.kind == "absolute" and task.log_scale
    scale = baseline.value / task.reduce(known) if relative else 1.0
    shrunk = sqrt(len(units) / len(baseline.losses.values))
    low, high, bound = (found.loss + shrunk * (end - found.loss) for end in (found.low, found.high, found.bound))
    return Comparison(scale * found.loss, scale * low, scale * high, scale * bound)


@dataclass(frozen=True, eq=False)
class Judge:
    """What the evaluations of the search split are judged by.

    Whatever the budget says, the model file must have fewer bytes than the checkpoint's: a selection saves.
    groups: the sampling group of each unit of the split, and looks: how often an evaluation may end early; None where
    none does (`foretell`).
    """

    task: Task
    budget: Budget
    baseline: Evaluation
    checkpoint_bytes: int
    groups: Units | None = None
    looks: int = 1

    @property
    def most_bytes(self) -> int:
        """The largest model file that is accepted."""
        below = self.checkpoint_bytes - 1
        return below if self.budget.max_bytes is None else min(below, self.budget.max_bytes)

    def judge(self, evaluation: Evaluation, allocation: Allocation, tier: str, note: str) -> Judged:
        """Compare an evaluation with the baseline and ask the budget about it, or foretell what it would say."""
        found = paired(self.task, self.budget, self.baseline, evaluation, allocation)
        verdict = self.budget.verdict(evaluation.footprint_file, found.loss, found.bound)
        verdict = replace(verdict, memory_ok=evaluation.footprint_file <= self.most_bytes)
        expected = verdict.quality_ok
        if not evaluation.complete and self.budget.max_loss is not None:
            foretold = self._keeps(evaluation.losses)
            verdict = replace(verdict, quality_ok=foretold is True, undecided=foretold is None)
            expected = expected if foretold is None else foretold
        return Judged(allocation, tier, note, evaluation, found, verdict, expected)

    def stop(self, allocation: Allocation, best: Judged | None) -> Stop | None:
        """When the evaluation of an allocation may end: once it is foretold whether the quality limit is kept.

        Where the score is preferred a kept limit is not all there is to know, so it ends only once it is foretold that
        the limit is broken or that the score of `best`, whose evaluation is complete, is not reached.
        """
        if self.groups is None:
            return None
        if self.budget.prefer == "smallest":
            return None if self.budget.max_loss is None else lambda losses: self._keeps(losses) is not None
        reach = None if best is None else self._loss_within_reach(allocation, best)

        def decided(losses: Losses) -> bool:
            if self.budget.max_loss is not None and self._keeps(losses) is False:
                return True
            return reach is not None and self._foretell(losses, *reach, "point") is False

        return decided

    def choose(self, judged: Iterable[Judged]) -> Judged | None:
        """The selected one of the accepted evaluations; never the float network, which is the baseline.

        By size one that ended early may be it, as it is foretold to keep the limit. Scores are compared of complete
        ones alone: the others ended because theirs is foretold to be worse.
        """
        open_ = [one for one in judged if one.verdict.accepted and one.tier != BASELINE]
        pool = {one.allocation.key: one for one in open_ if one.complete or self.budget.prefer == "smallest"}
        found = self.budget.select(
            [self._candidate(one) for one in pool.values()], higher_is_better=self.task.higher_is_better
        )
        return None if found is None else pool[found.key]

    def _candidate(self, one: Judged) -> Candidate:
        """What is foretold to keep the limit counts as keeping it, whatever is expected of its bound."""
        limit, found = self.budget.max_loss, one.candidate
        if one.complete or limit is None:
            return found
        return replace(found, loss=min(found.loss, limit), bound=min(found.bound, limit))

    def undecided(self, judged: Iterable[Judged], best: Judged | None = None) -> int:
        """How many evaluations ended early and say too little for this budget; none under the one that ended them.

        By size: of which the limit is not foretold. By score: of which neither a broken limit nor a worse score than
        that of `best`, whose evaluation is complete, is foretold.
        """
        return sum(not one.complete and one.verdict.memory_ok and self._open(one, best) for one in judged)

    def _open(self, one: Judged, best: Judged | None) -> bool:
        if self.budget.prefer == "smallest":
            return one.verdict.undecided
        stop = self.stop(one.allocation, best)
        return stop is None or not stop(one.evaluation.losses)

    def settling(self, judged: Iterable[Judged], allocation: Allocation) -> Judged | None:
        """An evaluation that breaks the quality limit with its whole interval while it is nowhere coarser.

        Derived: rounding a site to fewer bits is taken to lose no less. Then the allocation need not be measured. Of an
        evaluation that ended early, foretold to break the limit, the interval is the one that its units let expect of
        the whole split, which may still turn out wider.
        """
        limit = self.budget.max_loss
        if limit is None or self.groups is None:
            return None
        broken = [one for one in judged if not (one.expected or one.verdict.undecided) and one.comparison.low > limit]
        return next((one for one in broken if _nowhere_finer(allocation, one.allocation)), None)

    def _keeps(self, losses: Losses) -> bool | None:
        limit = self.budget.max_loss
        return None if limit is None else self._foretell(losses, self.budget.kind, limit, self.budget.decision)

    def _foretell(self, losses: Losses, kind: Kind, limit: float, decision: Decision) -> bool | None:
        if self.groups is None or len(losses.values) < LEAST_UNITS:
            return None
        rule: dict[str, Any] = {"kind": kind, "decision": decision, "limit": limit}
        return foretell(self.task, losses, self.baseline.losses, **rule, groups=self.groups, looks=self.looks)

    def _loss_within_reach(self, allocation: Allocation, best: Judged) -> tuple[Kind, float]:
        """(kind, loss): an allocation that loses more has a worse score than `best`."""
        ratio = allocation.footprint().tensors / allocation.anatomy.float32_bytes
        saved = (self.budget.mu or 0.0) * (best.memory_ratio - ratio)
        if self.task.higher_is_better:
            kind: Kind = "points" if self.budget.kind == "points" else "absolute"
            scale = 1.0 if kind == "points" else 0.01
            return kind, scale * (100 * (self.baseline.value - best.evaluation.value) + saved)
        return "absolute", best.evaluation.value - self.baseline.value + saved


def sampling_groups(places: Sequence[Units], exchangeable: bool) -> Units:
    """The group of every unit of a split `(units,)` by what was drawn together: itself, or its batch (`foretell`).

    places: those of each batch's units.
    """
    groups = np.arange(sum(map(len, places)))
    if not exchangeable:
        for number, units in enumerate(places):
            groups[units] = number
    return groups


def _nowhere_finer(one: Allocation, other: Allocation) -> bool:
    """Whether `one` gives no site more bits than `other`, in formats that differ in nothing else, rounded alike."""
    pairs = zip(one.choices(), other.choices(), strict=True)
    return all(
        (mine, method) == (theirs, their_method)
        or (theirs == FLOAT32 and mine.is_integer)
        or (
            method == their_method
            and mine.is_integer
            and theirs.is_integer
            and mine.bits < theirs.bits
            and replace(mine, bits=theirs.bits) == theirs
        )
        for (_, mine, method), (_, theirs, their_method) in pairs
    )
