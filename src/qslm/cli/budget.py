"""The budget options of `search`, `select` and `demo` as a `Budget`, and its answer in words."""

from typing import TYPE_CHECKING, Any

from qslm.cli.output import print_table

if TYPE_CHECKING:
    from qslm.anatomy import Anatomy
    from qslm.budget import Budget
    from qslm.study import Selection


def check_texts(max_memory: str | None, max_drop: str | None, max_rise: str | None) -> None:
    """Refuse what cannot be read before anything is loaded. Raises BudgetError."""
    from qslm.budget import parse_loss
    from qslm.errors import BudgetError
    from qslm.units import parse_memory

    parse_loss(max_drop, max_rise)
    if max_memory is not None:
        parse_memory(max_memory, 2**62)
    elif max_drop is None and max_rise is None:
        raise BudgetError("There is no budget.", "Give --max-memory, --max-drop or --max-rise.")


def make_budget(
    anatomy: "Anatomy",
    max_memory: str | None,
    max_drop: str | None,
    max_rise: str | None,
    **choices: Any,
) -> "Budget":
    """The budget for a network; `choices` are decision, prefer and mu. Raises BudgetError."""
    from qslm.budget import Budget, parse_loss
    from qslm.units import parse_memory

    size = None if max_memory is None else parse_memory(max_memory, anatomy.float32_bytes)
    limit, kind = parse_loss(max_drop, max_rise)
    return Budget(size, limit, kind, **choices)


def print_selection(selection: "Selection") -> None:
    """Print the baseline beside what was selected."""
    from qslm.report.record import spell_loss, spell_value
    from qslm.units import format_bytes

    base, chosen, found = selection.baseline, selection.selected, selection.difference
    metric, kind = base.metric, found.kind
    figures = (base, chosen.figures)
    low, high = spell_loss(kind, found.low), spell_loss(kind, found.high)
    limit = "no limit" if found.limit is None else f"limit {spell_loss(kind, found.limit, signed=False)}"
    rows = [
        [metric, *(spell_value(metric, f.value) for f in figures)],
        ["95 % interval", *(f"{spell_value(metric, f.low)} to {spell_value(metric, f.high)}" for f in figures)],
        ["loss, paired", "", f"{spell_loss(kind, found.loss)} ({low} to {high})"],
        [f"promise ({limit})", "", found.conclusion],
        ["model file", *(format_bytes(f.bytes) for f in figures)],
        ["saving against float32", "", f"{100 * chosen.saving:.2f} %"],
        ["  as the paper counts", "", f"{100 * selection.allocation.paper_saving():.2f} %"],
        ["saving against the file", "", f"{100 * chosen.saving_file:.2f} %"],
    ]
    print_table([f"on the {found.split} split", "baseline", "selected"], rows)
    print(f"{selection.evaluations:,} evaluations in {selection.seconds:,.0f} s; selected: {chosen.note}")
