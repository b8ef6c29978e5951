"""Heat maps of a study of sensitivity: a row a part of the network, a column a bit width, for every quantity."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from qslm.budget import spell_loss
from qslm.report.pictures import INK, new_figure, plain_text
from qslm.report.record import spell_value
from qslm.study import Sensitivity
from qslm.study.sensitivity import Line
from qslm.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DECADES = 4  # of a quantity that the colours tell apart, below its largest value


@dataclass(frozen=True)
class Quantity:
    """One figure of every line: its name in the page, its title, its meaning, and where it comes from."""

    name: str
    title: str
    meaning: str
    of: Callable[[Line], float | None]


def quantities(found: Sensitivity) -> list[Quantity]:
    """What can be drawn of a study: the last two only where there are neurons."""
    task, unit = found.about["task"], " (points)" if found.about["kind"] == "points" else ""
    title = f"{task['metric']} {'lost' if task['higher_is_better'] else 'above the baseline'}{unit}"
    every = [
        Quantity("loss", title, "positive is worse", lambda ln: ln.loss),
        Quantity("divergence", "KL divergence of the logits", "nats to the float network", lambda ln: ln.divergence),
        Quantity("flipped", "Flipped spikes", "share, mean over the neuron layers", lambda ln: ln.flipped),
        Quantity("drift", "Membrane drift", "mean |h_q - h| / std h, mean over the layers", lambda ln: ln.drift),
    ]
    return [quantity for quantity in every if any(quantity.of(line) is not None for line in found.lines)]


@dataclass(frozen=True)
class Cells:
    """A heat map as values: `lines[i][j]` is part `names[i]` at `widths[j]`, None where it was not measured yet."""

    names: tuple[str, ...]
    widths: tuple[int, ...]
    lines: tuple[tuple[Line | None, ...], ...]


def arrange(found: Sensitivity) -> Cells:
    """Parts in the order of the network, those with the same sites once; widths from the highest to the lowest."""
    rows: dict[tuple[str, ...], dict[int, Line]] = {}
    for line in found.lines:
        rows.setdefault(line.sites, {}).setdefault(line.width, line)
    widths = tuple(sorted({line.width for line in found.lines}, reverse=True))
    names = tuple(next(iter(row.values())).name for row in rows.values())
    return Cells(names, widths, tuple(tuple(row.get(width) for width in widths) for row in rows.values()))


def shades(values: Sequence[Sequence[float | None]]) -> tuple[list[list[float | None]], float, float]:
    """(log10 of the values, the lowest and the highest shade); what is not positive gets the lowest."""
    finite = [value for row in values for value in row if value is not None and 0 < value < math.inf]
    top = math.log10(max(finite, default=1.0))
    bottom = max(top - DECADES, math.log10(min(finite, default=1.0)))
    bottom = bottom if bottom < top else top - 1

    def shade(value: float | None) -> float | None:
        if value is None:
            return None
        return bottom if value <= 0 else top if value == math.inf else min(max(math.log10(value), bottom), top)

    return [[shade(value) for value in row] for row in values], bottom, top


def heat_map(found: Sensitivity, quantity: Quantity) -> dict[str, Any]:
    """One quantity as a Plotly figure; the colour is its logarithm."""
    cells = arrange(found)
    values = _values(cells, quantity)
    colours, bottom, top = shades(values)
    ticks = range(math.ceil(bottom), math.floor(top) + 1)
    trace = {
        "type": "heatmap",
        "x": [f"{width} bit" for width in cells.widths],
        "y": list(range(len(cells.names))),
        "z": colours,
        "text": [[_spell(value) for value in row] for row in values],
        "customdata": [["" if line is None else hover(found, line) for line in row] for row in cells.lines],
        "texttemplate": "%{text}",
        "hovertemplate": "%{customdata}<extra></extra>",
        "colorscale": "Viridis",
        "reversescale": True,
        "zmin": bottom,
        "zmax": top,
        "xgap": 2,
        "ygap": 2,
        "colorbar": {"tickvals": list(ticks), "ticktext": [f"{10.0**tick:g}" for tick in ticks], "thickness": 12},
    }
    names = {"tickvals": list(range(len(cells.names))), "ticktext": [escape(name) for name in cells.names]}
    layout = {
        "xaxis": {"side": "top", "showgrid": False, "type": "category"},
        "yaxis": {"autorange": "reversed", "showgrid": False, **names},
        "height": 120 + 24 * len(cells.names),
        "margin": {"l": 56, "r": 12, "t": 12, "b": 8},
    }
    return {"data": [trace], "layout": layout}


def hover(found: Sensitivity, line: Line) -> str:
    """What a cell says when the pointer rests on it."""
    kind, metric = str(found.about["kind"]), str(found.about["task"]["metric"])
    lines = [
        f"<b>{escape(line.name)} at {escape(line.format)}</b>",
        f"{escape(metric)} {spell_value(metric, line.value)}",
        f"loss {spell_loss(kind, line.loss)}, 95 %: {spell_loss(kind, line.low)} to {spell_loss(kind, line.high)}",
        f"KL {line.divergence:.3g} nats",
    ]
    if line.flipped is not None and line.drift is not None and line.rate_change is not None:
        lines.append(f"flipped {100 * line.flipped:.3g} %, firing rate {100 * line.rate_change:+.3g} points")
        lines.append(f"membrane drift {line.drift:.3g}")
    return "<br>".join([*lines, format_bytes(line.bytes)])


def draw(found: Sensitivity) -> "Figure":
    """All quantities side by side, for a PNG."""
    cells, shown = arrange(found), quantities(found)
    longest = max(map(len, cells.names), default=1)
    wide = max(1.8, 0.62 * len(cells.widths))
    figure = new_figure(0.09 * longest + (wide + 0.3) * len(shown), 1.3 + 0.28 * len(cells.names))
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for place, (axes, quantity) in enumerate(zip(panels, shown, strict=True)):
        _panel(axes, cells, quantity)
        axes.set_yticks(range(len(cells.names)), plain_text(cells.names) if place == 0 else [], fontsize=8)
    return figure


def _panel(axes: "Axes", cells: Cells, quantity: Quantity) -> None:
    values = _values(cells, quantity)
    colours, bottom, top = shades(values)
    pixels = [[math.nan if colour is None else colour for colour in row] for row in colours]
    axes.imshow(pixels, cmap="viridis_r", vmin=bottom, vmax=top, aspect="auto")
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            ink = "white" if (colours[i][j] or 0.0) - bottom > 0.5 * (top - bottom) else "black"
            axes.text(j, i, _spell(value), ha="center", va="center", color=ink, fontsize=7)
    axes.set_xticks(range(len(cells.widths)), [f"{width}" for width in cells.widths], fontsize=8)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0, colors=INK)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(plain_text([quantity.title])[0], fontsize=9, color=INK)


def _values(cells: Cells, quantity: Quantity) -> list[list[float | None]]:
    return [[None if line is None else quantity.of(line) for line in row] for row in cells.lines]


def _spell(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
