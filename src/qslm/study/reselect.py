"""Other questions to a study that was made: a selection from its ledger alone, with no new evaluation."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from qslm.budget import Budget, check_possible, parse_loss
from qslm.errors import BudgetError, StudyError
from qslm.study import folder
from qslm.study.checks import check_kind, check_sample
from qslm.study.judging import BASELINE, Judge, Judged
from qslm.study.recorded import Recorded
from qslm.study.refusal import nothing_accepted
from qslm.study.selection import Foretold, Pair, Selection, make_selection
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

    Evaluations that ended early are judged by what they foretell under the new budget, but never selected: the
    `foretold` and the `undecided` of the Selection say what a search under this budget would have to measure.
    """
    known = Recorded.read(Path(run), task)
    selection = answer(known, _budget(known, max_memory, max_drop, max_rise, prefer, mu, decision))
    return replace(selection, packed=_packed(known.run, selection))


def answer(known: Recorded, budget: Budget) -> Selection:
    """What the evaluations of a study answer under a budget, without a look at the packed model.

    Only complete evaluations are selected; what those that ended early leave open is said. Raises as `select` does.
    """
    judge = known.judge(budget)
    check_kind(known.task, budget, judge.baseline.losses)
    check_sample(known.task, budget, judge.baseline.losses)
    judged = known.judged(judge)
    _check_measured(known, judge, judged)
    chosen = judge.choose([one for one in judged if one.complete])
    if chosen is None:
        raise nothing_accepted(judge, judged, known.stopped)
    selection = make_selection(
        known.run,
        known.task,
        budget,
        chosen,
        Pair(judge.baseline, chosen.evaluation),
        known.report(chosen),
        known.checkpoint_bytes,
        [*(row.evaluation for row in known.rows), *known.reported.values()],
        known.stopped,
    )
    return replace(selection, undecided=judge.undecided(judged, chosen), foretold=_foretold(judge.choose(judged)))


def _foretold(best: Judged | None) -> Foretold | None:
    """The best of all, where it is not complete."""
    if best is None or best.complete:
        return None
    return Foretold(best.allocation.key, best.note, best.evaluation.footprint_file)


def _packed(run: Path, selection: Selection) -> str | None:
    """The sha256 of the packed model, where it is of the selected allocation."""
    if not (run / folder.SELECTION).is_file():
        return None
    try:
        return folder.packed_digest(run, folder.read_json(run / folder.SELECTION), selection.allocation.key)
    except (KeyError, TypeError) as error:
        raise StudyError(f"{run / folder.SELECTION} lacks something: {error}.", folder.AGAIN) from error


def _budget(
    known: Recorded,
    max_memory: str | int | None,
    max_drop: str | float | None,
    max_rise: str | float | None,
    prefer: Literal["smallest", "score"] | None,
    mu: float | None,
    decision: Literal["bound", "point"] | None,
) -> Budget:
    """The study's budget with what was given in place of its own."""
    stored = known.budget
    max_bytes, max_loss, kind = stored.max_bytes, stored.max_loss, stored.kind
    if max_memory is not None:
        text = f"{max_memory}B" if isinstance(max_memory, int) else max_memory
        max_bytes = parse_memory(text, known.anatomy.float32_bytes)
    if max_drop is not None or max_rise is not None:
        max_loss, kind = parse_loss(max_drop, max_rise)
    return Budget(
        max_bytes,
        max_loss,
        kind,
        decision or stored.decision,
        stored.prefer if prefer is None and mu is None else prefer,
        stored.mu if mu is None else mu,
    )


def _check_measured(known: Recorded, judge: Judge, judged: Sequence[Judged]) -> None:
    """Refuse a memory budget below every file that the study's options make, or below everything measured that keeps
    the quality limit and saves. Raises BudgetError.
    """
    budget = judge.budget
    measured = [one.evaluation.footprint_file for one in judged]
    smallest = min([known.options().smallest(known.anatomy).footprint().file, *measured])
    check_possible(budget.max_bytes, smallest, known.anatomy.float32_bytes)
    kept = [one for one in judged if one.verdict.quality_ok and one.tier != BASELINE]
    sizes = [one.evaluation.footprint_file for one in kept if one.complete]
    saving = [size for size in sizes if size < judge.checkpoint_bytes]
    smallest = min((one.evaluation.footprint_file for one in kept), default=0)
    if budget.max_bytes is not None and saving and smallest > budget.max_bytes:
        raise BudgetError(
            f"The smallest model file measured so far that keeps the quality limit has {min(saving):,} bytes, "
            f"the budget is {budget.max_bytes:,}.",
            f"Give --max-memory {min(saving)}B, or search again with this budget: it may find a smaller one.",
        )
