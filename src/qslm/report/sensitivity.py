"""The report of a study of sensitivity: a page with heat maps and every line, and the heat maps as PNG."""

from collections.abc import Iterable
from functools import partial
from html import escape
from pathlib import Path

from qslm.budget import spell_loss
from qslm.errors import ArtifactError, StudyError
from qslm.formats.staging import commit, stage, write_bytes
from qslm.report.document import card, cell, document, figure, provenance
from qslm.report.pictures import save_figure
from qslm.report.record import spell_data, spell_value, stands_in
from qslm.report.sensitivity_figures import draw, heat_map, quantities
from qslm.study import Sensitivity, read_sensitivity
from qslm.study.recorded import source_of
from qslm.study.sensitivity import Line
from qslm.units import MB

PAGE, PICTURE = "sensitivity.html", "figures/sensitivity.png"
TEXT_COLUMNS = ("part", "level", "format")


def write_sensitivity(run: Path | str) -> Path:
    """Write `sensitivity.html` and `figures/sensitivity.png` from a run's sensitivity.json; return the page's path.

    Raises StudyError when the folder holds no study of sensitivity, or cannot be written.
    """
    run = Path(run)
    found = read_sensitivity(run)
    if not found.lines:
        raise StudyError(f"The study of sensitivity in {run} has measured nothing yet.", "Let it run on.")
    try:
        text = render(found).encode()
        (run / PICTURE).parent.mkdir(parents=True, exist_ok=True)
        commit([stage(run / PICTURE, partial(save_figure, draw(found)))])
        write_bytes(run / PAGE, text)
    except ArtifactError as error:
        raise StudyError(error.problem, error.remedy) from error
    except OSError as error:
        problem = f"Cannot write the report into {run}: {error.strerror or error}."
        raise StudyError(problem, "Free some space, or make the folder writable.") from error
    except (KeyError, TypeError, ValueError) as error:
        problem = f"{run} does not hold a whole study of sensitivity: {type(error).__name__}: {error}."
        raise StudyError(problem, "Run qslm sensitivity again in this folder.") from error
    return run / PAGE


def render(found: Sensitivity) -> str:
    """The whole page as HTML text."""
    drawn = {quantity.name: heat_map(found, quantity) for quantity in quantities(found)}
    maps = [
        figure(
            quantity.name,
            escape(quantity.title),
            f"One part alone at one width, all else float32; {escape(quantity.meaning)}. The colour is logarithmic.",
            "plot bare",
        )
        for quantity in quantities(found)
    ]
    task, source = str(found.about["task"]["name"]), source_of(found.about["identity"])
    title = f"{found.about['checkpoint']['name']} on {spell_data(task, source)}"
    sections = [_answer(found), *maps, _lines(found), provenance(_terms(found))]
    return document("qslm sensitivity", title, sections, drawn, source if stands_in(task, source) else "")


def _answer(found: Sensitivity) -> str:
    task, base, worst = found.about["task"], found.about["baseline"], found.ranked()[0]
    metric, kind = str(task["metric"]), str(found.about["kind"])
    unfinished = f" {len(found.lines):,} of {found.planned:,} so far." if len(found.lines) < found.planned else ""
    spread = f"95 %: {spell_value(metric, _number(base['low']))} to {spell_value(metric, _number(base['high']))}"
    cards = [
        card(f"float {metric}", spell_value(metric, _number(base["value"])), spread),
        card("measured on", f"{int(task['units']):,} {task['unit']}s", f"{int(task['tokens']):,} tokens, search split"),
        card("most sensitive", worst.name, f"at {worst.format}: {spell_loss(kind, worst.loss)} of {metric}"),
    ]
    verdict = f"Every part of the network alone at every width, against the float network.{unfinished}"
    return (
        f'<section class="answer"><p class="verdict">{escape(verdict)}</p>'
        f'<dl class="cards">{"".join(cards)}</dl></section>'
    )


def _number(value: float | None) -> float:
    return float("inf") if value is None else float(value)


def _lines(found: Sensitivity) -> str:
    metric = str(found.about["task"]["metric"])
    spiking = [] if found.lines[0].flipped is None else ["flipped", "rate change", "drift"]
    heads = "".join(
        _head(name) for name in ("part", "level", "format", metric, "loss", "95 % interval", "KL", *spiking, "MB")
    )
    rows = "\n".join(_row(found, line) for line in found.ranked())
    return (
        '<section class="long"><h2>Ranking</h2><p>By the measured loss, then by KL; a part with the same sites as a'
        " wider one is not repeated. Press a heading to sort.</p>"
        f'<div class="scroll"><table class="sortable"><thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>'
        "</table></div></section>"
    )


def _head(name: str) -> str:
    style = ' class="text"' if name in TEXT_COLUMNS else ""
    return f'<th scope="col"{style}><button type="button">{escape(name)}</button></th>'


def _row(found: Sensitivity, line: Line) -> str:
    metric, kind = str(found.about["task"]["metric"]), str(found.about["kind"])
    cells = [f'<td class="text">{escape(text)}</td>' for text in (line.name, line.level, line.format)]
    cells += [
        cell(spell_value(metric, line.value), line.value),
        cell(spell_loss(kind, line.loss), line.loss),
        cell(f"{spell_loss(kind, line.low)} to {spell_loss(kind, line.high)}", line.low),
        cell(f"{line.divergence:.3g}", line.divergence),
    ]
    if line.flipped is not None and line.rate_change is not None and line.drift is not None:
        cells += [
            cell(f"{100 * line.flipped:.3g} %", line.flipped),
            cell(f"{100 * line.rate_change:+.3g} points", line.rate_change),
            cell(f"{line.drift:.3g}", line.drift),
        ]
    return f"<tr>{''.join(cells)}{cell(f'{line.bytes / MB:,.3f}', line.bytes)}</tr>"


def _terms(found: Sensitivity) -> Iterable[tuple[str, str]]:
    checkpoint, identity, task = found.about["checkpoint"], found.about["identity"], found.about["task"]
    rows = found.lines[0].rows
    yield "checkpoint", f"{checkpoint['name']}, {int(checkpoint['bytes']):,} bytes, sha256 {checkpoint['digest']}"
    if source := source_of(identity):
        yield "source of the data", source
    yield "search data", f"{int(task['units']):,} {task['unit']}s, sha256 {identity['data']['search']}"
    yield "divergence", f"mean over {rows:,} rows of logits"
    rates = found.about["baseline"]["rates"]
    if rates:
        spelled = ", ".join(f"{name} {100 * _number(rate):.1f} %" for name, rate in rates.items())
        yield "float firing rates", spelled
    yield "options", ", ".join(f"{name} {value}" for name, value in found.about["options"].items())
    machine = {"qslm": identity["code"]["qslm"], **identity["versions"], **identity["machine"]}
    yield "versions and machine", ", ".join(f"{name} {value}" for name, value in machine.items())
