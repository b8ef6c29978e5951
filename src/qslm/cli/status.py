"""`qslm status`: where a study stands, also while it runs."""

from typing import TYPE_CHECKING

from qslm.cli.options import Json, Run
from qslm.cli.output import print_json, print_table

if TYPE_CHECKING:
    from qslm.study import Status


def status(run: Run, as_json: Json = False) -> None:
    """Say where the study of a run folder stands: the best so far, what is spent, and what is left at most.

    It can be asked at any moment, also while the study runs, and changes nothing.

    Example: [bold]qslm status runs/demo[/bold]
    """
    from qslm.study import status as look

    found = look(run)
    if as_json:
        print_json(found.to_dict())
        return
    print_table([str(run), ""], [[name, text] for name, text in _lines(found) if text], texts=2)


def _lines(found: "Status") -> list[tuple[str, str]]:
    """What a person asks, each with its answer; empty where there is none."""
    from qslm.units import spell_duration

    most = "" if found.maximum_evaluations is None else f" of at most {found.maximum_evaluations:,}"
    left = "" if found.seconds_left is None else f"; {spell_duration(found.seconds_left)} left if all of them come"
    return [
        ("study", f"{found.checkpoint} on {found.task}, {found.strategy}"),
        ("budget", _budget(found)),
        ("state", _STATES[found.state] + (f"; it ended at its --max-{found.stopped}" if found.stopped else "")),
        ("evaluations", f"{found.evaluations:,}{most}"),
        ("time", f"{spell_duration(found.seconds)} measured{left}"),
        ("best so far", _best(found)),
        ("its formats", _formats(found)),
        ("", _open(found)),
    ]


_STATES = {
    "running": "running",
    "finished": "finished",
    "nothing accepted": "ended without an answer",
    "interrupted": "not running; the same command goes on",
}


def _budget(found: "Status") -> str:
    from qslm.budget import spell_loss
    from qslm.units import format_bytes

    budget = found.budget
    limits = [] if budget.max_bytes is None else [f"{format_bytes(budget.max_bytes)} at most"]
    if budget.max_loss is not None:
        limits.append(f"a loss of at most {spell_loss(budget.kind, budget.max_loss, signed=False)} ({budget.decision})")
    return ", ".join([*limits, "the smallest" if budget.prefer == "smallest" else f"the best score, mu {budget.mu:g}"])


def _best(found: "Status") -> str:
    from qslm.budget import spell_loss
    from qslm.report.record import spell_value
    from qslm.units import format_bytes

    best = found.best
    if best is None:
        return f"none: {found.why}"
    value, loss = best.search_selected, best.search_difference
    return (
        f"{best.selected.note}: {value.metric} {spell_value(value.metric, value.value)}, "
        f"loss {spell_loss(loss.kind, loss.loss)} (bound {spell_loss(loss.kind, loss.bound)}) on the search split, "
        f"{format_bytes(value.bytes)}, {100 * best.selected.saving:.2f} % less than float32"
    )


def _formats(found: "Status") -> str:
    from qslm.cli.budget import spell_formats

    return "" if found.best is None else spell_formats(found.best)


def _open(found: "Status") -> str:
    from qslm.cli.budget import spell_open

    return "" if found.best is None else spell_open(found.best)
