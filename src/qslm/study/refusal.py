"""The error of a study in which nothing was accepted: what came nearest, and what would let it in."""

from collections.abc import Iterable
from math import ceil, inf, isfinite

from qslm.budget import Budget, spell_loss
from qslm.errors import StudyError
from qslm.study.judging import BASELINE, Judge, Judged
from qslm.study.selection import Stopped
from qslm.units import format_bytes


def closest_of(judge: Judge, judged: Iterable[Judged]) -> Judged | None:
    """The evaluation that came closest to the budget; None where nothing was evaluated.

    What is no smaller than the checkpoint's file no budget lets in: it is taken only where there is nothing else.
    """
    tried = [one for one in judged if one.tier != BASELINE]
    saving = [one for one in tried if one.evaluation.footprint_file < judge.checkpoint_bytes]
    return min(saving or tried, key=lambda one: _excess(judge, one), default=None)


def nothing_accepted(judge: Judge, judged: Iterable[Judged], stopped: Stopped | None) -> StudyError:
    """The error that names the closest evaluation, of the complete ones where there are any.

    `stopped` is the limit that ended the search. What ended early may be undecided, or foretold to keep the budget.
    """
    tried = [one for one in judged if one.tier != BASELINE]
    closest = closest_of(judge, [one for one in tried if one.complete]) or closest_of(judge, tried)
    if closest is None:
        limit = f"raise --max-{stopped}, which ended the search" if stopped else "try another --strategy"
        return StudyError("The search made no evaluation.", f"{limit[0].upper()}{limit[1:]}.")
    if (foretold := judge.choose(tried)) is not None:
        return StudyError(
            f"No whole evaluation keeps the budget ({', '.join(_limits(judge))}), but one that ended early is foretold "
            f"to keep it: {foretold.note!r}, {format_bytes(foretold.evaluation.footprint_file)}.",
            "Search again with this budget, which measures it whole.",
        )
    loss, bound = (_spell(judge.budget, value) for value in (closest.comparison.loss, closest.comparison.bound))
    remedy = f"{f'raise --max-{stopped}, which ended the search, or ' if stopped else ''}{_remedy(judge, closest)}"
    open_ = judge.undecided(tried)
    if open_:
        remedy = f"search again with this budget, which decides what ended early under another one, or {remedy}"
    return StudyError(
        f"None of {len(tried)} evaluations {'is known to keep' if open_ else 'keeps'} the budget "
        f"({', '.join(_limits(judge))}){f', {open_} that ended early are undecided' if open_ else ''}; the closest "
        f"{'of the others ' if open_ else ''}is "
        f"{closest.note!r}: a loss of {loss} (95 % bound {bound}), {format_bytes(closest.evaluation.footprint_file)}.",
        f"{remedy[0].upper()}{remedy[1:]} What was measured is kept.",
    )


def _limits(judge: Judge) -> list[str]:
    """Every limit in words, that of the checkpoint's own file among them where it is the tighter one."""
    budget = judge.budget
    limits = [] if budget.max_loss is None else [f"a loss of at most {_spell(budget, budget.max_loss)}"]
    if judge.most_bytes == budget.max_bytes:
        return [*limits, f"{format_bytes(budget.max_bytes)} at most"]
    return [*limits, f"less than the checkpoint's file, {format_bytes(judge.checkpoint_bytes)}"]


def _remedy(judge: Judge, closest: Judged) -> str:
    """What lets the closest in, and what else might help."""
    size, loss = closest.evaluation.footprint_file, _decisive(judge.budget, closest)
    if size >= judge.checkpoint_bytes and closest.verdict.quality_ok:
        return "give lower precisions (--precisions): no file of those tried is smaller than the checkpoint's."
    if size >= judge.checkpoint_bytes or not isfinite(loss):
        return "allow more loss, or give groups (--group 64) or lower precisions (--precisions)."
    allowed = [] if closest.verdict.quality_ok else [_option(judge.budget, loss)]
    allowed += [] if size <= judge.most_bytes else [f"--max-memory {size}B"]
    return f"allow {' and '.join(allowed)}, or give groups (--group 64) or other precisions (--precisions)."


def _option(budget: Budget, loss: float) -> str:
    """The option that allows a loss, rounded up."""
    name, scale, unit = {"points": ("--max-drop", 1, ""), "relative": ("--max-rise", 100, "%")}.get(
        budget.kind, ("--max-rise", 1, "")
    )
    return f"{name} {ceil(100 * scale * loss) / 100:.2f}{unit}"


def _decisive(budget: Budget, one: Judged) -> float:
    return one.comparison.bound if budget.decision == "bound" else one.comparison.loss


def _excess(judge: Judge, one: Judged) -> tuple[float, float]:
    """How far an evaluation is over the limits, as shares of them; then its loss."""
    budget, over = judge.budget, 0.0
    if budget.max_loss is not None:
        over += max(0.0, _decisive(budget, one) - budget.max_loss) / max(budget.max_loss, 1e-3)
    over += max(0.0, one.evaluation.footprint_file / max(judge.most_bytes, 1) - 1)
    return over, one.comparison.loss if isfinite(one.comparison.loss) else inf


def _spell(budget: Budget, loss: float) -> str:
    return spell_loss(budget.kind, loss, signed=False)
