"""The HTML page of a study, section by section."""

from collections.abc import Iterable
from html import escape

from qslm.budget import spell_loss
from qslm.energy import SPELLED
from qslm.report import energy_figures, figures
from qslm.report.document import card, cell, document, figure, provenance
from qslm.report.energy import MICRO, Account, Pass
from qslm.report.frame import is_full
from qslm.report.record import Measured, Point, Record, spell_point, spell_value
from qslm.units import MB, format_bytes

COLUMNS = ("#", "tier", "value", "95 % interval", "loss", "bound", "units", "MB", "quality", "memory", "note")
TEXT_COLUMNS = ("tier", "note", "quality", "memory")


def render(record: Record) -> str:
    """The whole page as HTML text."""
    drawn = {"pareto": figures.pareto(record), "tiers": figures.tiers(record)}
    if record.grid is not None:
        drawn["bits"] = figures.heat_map(record.grid)
    if record.energy is not None:
        drawn["energy"] = energy_figures.candidates(record, record.energy)
        drawn["energy-blocks"] = energy_figures.by_block(record.energy)
    sections = [_answer(record), _pareto(record), _bits(record), _energy(record), _tiers(record), _candidates(record)]
    sections.append(provenance(record.provenance))
    return document("qslm study", record.title, sections, drawn, record.subtitle)


def _answer(record: Record) -> str:
    return (
        f'<section class="answer"><p class="verdict">{_verdict(record)}</p>'
        f'<dl class="cards">{"".join(_cards(record))}</dl></section>'
    )


def _verdict(record: Record) -> str:
    if record.selected is None:
        return "No evaluated allocation keeps the budget: nothing was selected."
    conclusion = record.answer.conclusion
    badge = f'<span class="badge {escape(conclusion.replace(" ", "-"))}">{escape(conclusion)}</span>'
    saving = "" if record.saving is None else f", {100 * record.saving:.1f} % less than float32"
    return f"<strong>{format_bytes(record.selected.file_bytes)}</strong>{saving}. {_promise(record, badge)}"


def _promise(record: Record, badge: str) -> str:
    limits = record.limits
    if limits.max_loss is None:
        return "No limit was set on the loss."
    limit = spell_loss(limits.kind, limits.max_loss, signed=False)
    metric = escape(record.metric)
    promise = f"lose at most {limit} of {metric}" if record.higher_is_better else f"raise {metric} by at most {limit}"
    return f"Promise to {promise}, on the report split: {badge}{_MEANING.get(record.answer.conclusion, '')}"


_MEANING = {
    "met": " The whole 95 % interval of the loss keeps it.",
    "not shown": " The 95 % interval of the loss reaches beyond it.",
    "broken": " The whole 95 % interval of the loss lies beyond it.",
}


def _cards(record: Record) -> Iterable[str]:
    base, chosen = record.baseline, record.selected
    split = "search split" if chosen is None else "report split"
    yield card(f"baseline {record.metric}, {split}", spell_value(record.metric, base.value), _spread(record, base))
    if chosen is None:
        return
    value = spell_value(record.metric, chosen.value)
    yield card(f"selected {record.metric}, {split}", value, _spread(record, chosen))
    yield card(f"loss, paired, {split}", *_loss_texts(record))
    size, _, binary = format_bytes(chosen.file_bytes).partition(" (")
    yield card("model file", size, binary.rstrip(")") + _within(record))
    if record.saving is not None:
        of_file = record.saving_file
        note = "" if of_file is None else f"{100 * of_file:.1f} % less than the checkpoint's file"
        yield card("saved against float32", f"{100 * record.saving:.1f} %", note)


def _spread(record: Record, measured: Measured) -> str:
    low, high = spell_value(record.metric, measured.low), spell_value(record.metric, measured.high)
    return f"95 %: {low} to {high}"


def _loss_texts(record: Record) -> tuple[str, str]:
    answer, kind = record.answer, record.limits.kind
    if answer.loss is None:
        return "not compared", ""
    if answer.low is None or answer.high is None:
        return spell_loss(kind, answer.loss), ""
    spread = f"95 %: {spell_loss(kind, answer.low)} to {spell_loss(kind, answer.high)}"
    return spell_loss(kind, answer.loss), spread


def _within(record: Record) -> str:
    limit = record.limits.max_bytes
    return "" if limit is None else f", at most {format_bytes(limit).partition(' (')[0]}"


def _pareto(record: Record) -> str:
    judged = "its one-sided 95 % bound" if record.limits.decision == "bound" else "its measured value"
    return figure(
        "pareto",
        "Quality against memory",
        "Each mark is one allocation, measured on the search split against the baseline, in pairs, with its two-sided"
        " 95 % interval. Full: both promises kept, the loss judged by "
        f"{judged}. Open: one or both not kept. Diamond: ended early, once its verdict was foretold; what is expected"
        " of the whole split is shown. Triangle: beyond the frame. Dashed: the limits of the budget.",
    )


def _bits(record: Record) -> str:
    if record.grid is None:
        return ""
    text = "How the selected allocation stores each module of each block, in bits per weight."
    return figure("bits", "Bits per site", text, "plot bare")


def _energy(record: Record) -> str:
    """What decoding a token takes, of all candidates, and what the selection takes by block; nothing without it."""
    account = record.energy
    if account is None:
        return ""
    candidates = (
        "Each mark is one allocation that was measured whole: what a token of decoding at batch 1 takes for reading and"
        " writing memory, and for computing, as the network ran. Full: both promises kept. All are priced with the"
        f" zeros and the spikes of the selected one. {_accounted(account)}"
    )
    blocks = (
        "What the selection takes for a token in each block, of memory (pale) and of computing (full), as the network"
        " ran, beside integers of the same bits without spikes, and FP16. Above: decoding at batch 1, which reads every"
        f" weight for each token. Below: a prefill of {account.passes[-1].tokens:,} tokens, which reads them once for"
        f" all. {_totals(account)}"
    )
    return figure("energy", "Energy against quality", candidates) + figure(
        "energy-blocks", "Energy by block", blocks, "plot tall"
    )


def _accounted(account: Account) -> str:
    """What the numbers are, in sentences."""
    text = "calibration text" if account.split == "calibrate" else f"the {account.split} split"
    missing = f" Not counted: {', '.join(account.not_counted)}." if account.not_counted else ""
    return escape(
        "This is an account, not a measurement: operations and bytes were counted while"
        f" {account.tokens:,} tokens of {text} ran through the network with the selected allocation, and were priced by"
        " published energies of one operation and one byte, without control, clock and leakage. The table:"
        f" {account.table}; {account.source} Weights lie in {account.weights_in}; activations of float matrices count"
        f" as {account.activations}; what happens between modules that are not known is not seen.{missing}"
    )


def _totals(account: Account) -> str:
    """The sums over all blocks, a sentence a pass."""
    return " ".join(f"All blocks, {escape(one.name)}: {_total(one)}." for one in account.passes)


def _total(one: Pass) -> str:
    totals = {machine: sum(part.total for part in spent) / MICRO for machine, spent in one.spent.items()}
    return ", ".join(f"{SPELLED[machine]} {total:,.3f} uJ a token" for machine, total in totals.items())


def _tiers(record: Record) -> str:
    way = _WAYS.get(record.strategy, "")
    bound = " The line above a mark reaches to its one-sided 95 % bound, which must keep the limit."
    text = f"Every evaluation in order{way}.{bound if record.limits.decision == 'bound' else ''}"
    return figure("tiers", "The search as it went", text, "plot tall")


_TIERS = ": first the whole network at one width, then each block alone, then blocks and modules in turn"
_WAYS = {
    "knapsack": ": first points of the least expected loss at a size (front), then single matrices moved to another"
    " width, each time from the best so far (exchange; the note names the last move alone)",
    "tiered": _TIERS,
    "literal": _TIERS,
    "uniform": ": the whole network at one width after the other",
    "greedy": ": the whole network at one width, each matrix alone (sensitivity), then one matrix after the other",
    "random": ", each drawn at random",
    "tpe": " of Optuna's tree-structured Parzen estimator",
    "nsga2": " of Optuna's genetic algorithm NSGA-II",
}


def _candidates(record: Record) -> str:
    heads = "".join(_head(name, record) for name in COLUMNS)
    rows = "\n".join(_row(record, p) for p in record.points)
    count = f"{len(record.points):,} evaluations on the search split{_ended(record)}"
    return (
        f'<section class="long"><h2>Candidates</h2><p>{count}</p>'
        f'<div class="scroll"><table class="sortable"><thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>'
        "</table></div></section>"
    )


def _ended(record: Record) -> str:
    early = sum(not p.complete for p in record.points)
    if not early:
        return "; press a heading to sort."
    metric, unit = escape(record.metric), escape(record.unit)
    return (
        f", {early:,} of them ended early; press a heading to sort. Of these the loss and its bound are what is"
        f" expected of all {unit}s, and the {metric} (≈) is the baseline's with that loss: it could not be compared as"
        f" it was measured, on the {unit}s seen alone."
    )


def _seen(record: Record, point: Point) -> str:
    """How many units were measured, of how many where the evaluation ended early."""
    whole = max(p.units for p in record.points)
    return f"{point.units:,}" if point.complete else f"{point.units:,} of {whole:,}"


def _head(name: str, record: Record) -> str:
    style = ' class="text"' if name in TEXT_COLUMNS else ""
    shown = {"value": record.metric, "units": f"{record.unit}s"}.get(name, name)
    return f'<th scope="col"{style}><button type="button">{escape(shown)}</button></th>'


def _row(record: Record, point: Point) -> str:
    measured, kind = point.measured, record.limits.kind
    interval = (measured.low, measured.high) if point.complete else ()
    cells = [
        cell(str(point.number), point.number),
        f'<td class="text">{escape(point.tier)}</td>',
        cell(spell_point(record.metric, point), point.comparable),
        cell(" to ".join(spell_value(record.metric, end) for end in interval), min(interval, default=None)),
        cell("" if point.loss is None else spell_loss(kind, point.loss), point.loss),
        cell("" if point.bound is None else spell_loss(kind, point.bound), point.bound),
        cell(_seen(record, point), point.units),
        cell(f"{measured.file_bytes / MB:,.3f}", measured.file_bytes),
        f'<td class="text">{_kept(point, point.quality_ok)}</td>',
        f'<td class="text">{_kept(point, point.memory_ok)}</td>',
        f'<td class="text note">{escape(point.note)}</td>',
    ]
    state = "selected" if point.selected else "" if is_full(point) else "rejected"
    return f'<tr class="{state}">{"".join(cells)}</tr>'


def _kept(point: Point, good: bool) -> str:
    """Whether a limit is kept; nothing of the baseline, which has none to keep."""
    if point.loss is None:
        return ""
    return "kept" if good else "not kept"
