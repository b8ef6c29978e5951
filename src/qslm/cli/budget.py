"""The budget options of `search`, `select` and `demo` as a `Budget`, and its answer in words."""

from typing import TYPE_CHECKING, cast

from qslm.cli.output import print_table

if TYPE_CHECKING:
    from qslm.anatomy import Anatomy
    from qslm.budget import Budget, Decision, Preference
    from qslm.study import Selection


TASKS = ("wikitext2", "sst2", "text", "labelled")
RISING = ("sst2", "labelled")  # tasks whose metric is a share of sentences that are right


def check_texts(task: str, max_memory: str | None, max_drop: str | None, max_rise: str | None) -> None:
    """Refuse what cannot be read, or not be had of a named task, before anything is loaded. Raises BudgetError."""
    from qslm.budget import parse_loss
    from qslm.errors import BudgetError, TaskError
    from qslm.units import parse_memory

    if task not in TASKS:
        raise TaskError(f"There is no task {task!r}.", f"Choose one of: {', '.join(TASKS)}.")
    parse_loss(max_drop, max_rise)
    if task in RISING and max_rise is not None:
        raise BudgetError(f"The accuracy of {task} has no rise to limit.", "Limit its drop: --max-drop 2, in points.")
    if task not in RISING and max_drop is not None:
        raise BudgetError(f"The perplexity of {task} has no drop to limit.", "Limit its rise: --max-rise 1.0 or 2%.")
    if max_memory is not None:
        parse_memory(max_memory, 2**62)
    elif max_drop is None and max_rise is None:
        raise BudgetError("There is no budget.", "Give --max-memory, --max-drop or --max-rise.")


def make_budget(
    anatomy: "Anatomy",
    task: str,
    max_memory: str | None,
    max_drop: str | None,
    max_rise: str | None,
    *,
    decision: str,
    prefer: str | None,
    mu: float | None,
) -> "Budget":
    """The budget for a network on a named task; without a limit its losses are told in points or as they are.

    Raises BudgetError, also on a `decision` or a `prefer` that there is not.
    """
    from qslm.budget import Budget, parse_loss
    from qslm.units import parse_memory

    size = None if max_memory is None else parse_memory(max_memory, anatomy.float32_bytes)
    limit, kind = parse_loss(max_drop, max_rise)
    if limit is None and task in RISING:
        kind = "points"
    return Budget(size, limit, kind, cast("Decision", decision), cast("Preference | None", prefer), mu)


def spell_open(selection: "Selection") -> str:
    """What evaluations that ended early leave open under the budget; empty where they leave nothing."""
    from qslm.units import format_bytes

    sentences = []
    if (smaller := selection.foretold) is not None:
        sentences.append(
            f"A smaller one is foretold to keep the budget: {smaller.note}, {format_bytes(smaller.bytes)}; "
            "searching again with it measures that whole."
        )
    if (count := selection.undecided) > 0:
        undecided = "evaluation that ended early is" if count == 1 else "evaluations that ended early are"
        sentences.append(f"{count:,} {undecided} undecided under this budget: search again decides them.")
    return " ".join(sentences)


def spell_formats(selection: "Selection") -> str:
    """How many of all weights the selected allocation has in which format: its note tells the last step alone."""
    from qslm.report.read import summarize

    return ", ".join(summarize(selection.allocation).splitlines())


def print_selection(selection: "Selection") -> None:
    """Print the baseline beside what was selected."""
    from qslm.budget import spell_loss
    from qslm.report.record import spell_value
    from qslm.units import format_bytes

    base, chosen, found = selection.baseline, selection.selected, selection.difference
    metric, kind = base.metric, found.kind
    figures = (base, chosen.figures)
    low, high = spell_loss(kind, found.low), spell_loss(kind, found.high)
    promise = "promise" if found.limit is None else f"promise (limit {spell_loss(kind, found.limit, signed=False)})"
    rows = [
        [metric, *(spell_value(metric, f.value) for f in figures)],
        ["95 % interval", *(f"{spell_value(metric, f.low)} to {spell_value(metric, f.high)}" for f in figures)],
        ["loss, paired", "", f"{spell_loss(kind, found.loss)} ({low} to {high})"],
        [promise, "", found.conclusion],
        ["model file", *(format_bytes(f.bytes) for f in figures)],
        ["saving against float32", "", f"{100 * chosen.saving:.2f} %"],
        ["  as the paper counts", "", f"{100 * selection.allocation.paper_saving():.2f} %"],
        ["saving against the file", "", f"{100 * chosen.saving_file:.2f} %"],
    ]
    print_table([f"on the {found.split} split", "baseline", "selected"], rows)
    print(
        f"{selection.evaluations:,} evaluations, baseline and report split among them, in {selection.seconds:,.0f} s; "
        f"last step: {chosen.note}"
    )
    print(f"formats of the weights: {spell_formats(selection)}")
    if left := spell_open(selection):
        print(left)
    if selection.stopped:
        print(f"The search stopped at its --max-{selection.stopped} and had more to try:")
        print("with a higher one the same command goes on.")
