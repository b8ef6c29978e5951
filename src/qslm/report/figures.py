"""The figures of the page, as Plotly traces and layouts in plain dictionaries; colours of the paper come by CSS.

Plotly reads a little HTML in its texts, so every text that comes from a file is escaped here.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from qslm.budget import spell_loss
from qslm.report.frame import (
    SELECTED,
    colour_of,
    frame,
    front,
    inside,
    is_beyond,
    is_full,
    loss_axis,
    loss_of,
    megabyte_range,
    megabyte_ticks,
    shape_of,
    tiers_of,
)
from qslm.report.limits import budget_levels, budget_lines
from qslm.report.record import Grid, Point, Record, spell_point
from qslm.units import MB, format_bytes

Figure = dict[str, Any]
BITS_TICKS = (1, 2, 4, 8, 16, 32)


def pareto(record: Record) -> Figure:
    """Quality against megabytes: every candidate with its paired interval, the budget's lines, the front."""
    low, top = frame(record)
    traces = [_front_line(record, top), *(_cloud(record, tier, top) for tier in tiers_of(record.points))]
    traces += [legend_entry(tier) for tier in tiers_of(record.points)]
    traces += [star(record, p, p.measured.file_bytes / MB, top) for p in record.points if p.selected]
    layout: Figure = {
        "xaxis": _megabytes(record),
        "yaxis": {"title": {"text": escape(loss_axis(record))}, "range": [low, top], **percent(record)},
    }
    return {"data": traces, "layout": layout | budget_lines(record)}


def tiers(record: Record) -> Figure:
    """The loss and the bytes of every evaluation, in the order in which the search asked for them."""
    low, top = frame(record)
    data = [_cloud(record, t, top, over_numbers=True) for t in tiers_of(record.points)]
    data += [_bytes_line(record, tier) for tier in tiers_of(record.points)]
    data += [legend_entry(tier) for tier in tiers_of(record.points)]
    layout: Figure = {
        "xaxis": {"title": {"text": "evaluation"}, "anchor": "y2"},
        "yaxis": {
            "title": {"text": escape(loss_axis(record))},
            "domain": [0.45, 1],
            "range": [low, top],
            **percent(record),
        },
        "yaxis2": {"domain": [0, 0.36], **_megabytes(record)},
    }
    return {"data": data, "layout": layout | budget_levels(record)}


def heat_map(grid: Grid) -> Figure:
    """Bits per site: a row a block, a column a module; the colour is the logarithm of the bits."""
    trace = {
        "type": "heatmap",
        "x": [escape(m) for m in grid.modules],
        "y": [escape(b) for b in grid.blocks],
        "z": [[None if b is None else math.log2(b) for b in row] for row in grid.bits],
        "text": [["" if b is None else f"{b:g}" for b in row] for row in grid.bits],
        "customdata": [[escape(t).replace("\n", "<br>") for t in row] for row in grid.texts],
        "texttemplate": "%{text}",
        "hovertemplate": "<b>%{y}, %{x}</b><br>%{customdata}<extra></extra>",
        "colorscale": "Viridis",
        "reversescale": True,
        "zmin": 0,
        "zmax": 5,
        "xgap": 2,
        "ygap": 2,
        "colorbar": {
            "title": {"text": "bits"},
            "tickvals": [math.log2(b) for b in BITS_TICKS],
            "ticktext": [str(b) for b in BITS_TICKS],
            "thickness": 12,
        },
    }
    layout = {
        "xaxis": {"side": "top", "tickangle": -45, "showgrid": False},
        "yaxis": {"autorange": "reversed", "showgrid": False},
        "height": 150 + 30 * len(grid.blocks),
        "margin": {"l": 56, "r": 12, "t": 12, "b": 8},
    }
    return {"data": [trace], "layout": layout}


def hover(record: Record, point: Point) -> str:
    """What a point says when the pointer rests on it."""
    measured, kind = point.measured, record.limits.kind
    lines = [
        f"<b>evaluation {point.number}, {escape(point.tier)}</b>",
        f"{escape(record.metric)} {spell_point(record.metric, point)}",
        format_bytes(measured.file_bytes),
    ]
    if point.loss is not None:
        lines.append(f"loss {spell_loss(kind, point.loss)}")
    if point.loss_low is not None and point.loss_high is not None:
        lines.append(f"95 %: {spell_loss(kind, point.loss_low)} to {spell_loss(kind, point.loss_high)}")
    if point.bound is not None:
        lines.append(f"one-sided bound {spell_loss(kind, point.bound)}")
    if not point.complete:
        lines.append(f"ended early: {point.units:,} {escape(record.unit)}s seen")
    lines += [escape(point.note)] if point.note else []
    lines += [escape(line) for line in point.summary.splitlines()]
    return "<br>".join(lines)


def _megabytes(record: Record) -> Figure:
    """The logarithmic axis of megabytes."""
    return {
        "title": {"text": "model file (MB)"},
        "type": "log",
        "tickvals": megabyte_ticks(record.points),
        "range": [math.log10(edge) for edge in megabyte_range(record)],
    }


def percent(record: Record) -> Figure:
    """The ticks of a relative loss."""
    return {"tickformat": ".1~%"} if record.limits.kind == "relative" else {}


def _cloud(record: Record, tier: str, top: float, over_numbers: bool = False) -> Figure:
    points = [p for p in record.points if p.tier == tier]
    xs = [p.number if over_numbers else p.measured.file_bytes / MB for p in points]
    trace = marks(record, tier, points, xs, top)
    if not over_numbers:
        trace["error_y"] = _error_bars(points, top, colour_of(tier))
    elif record.limits.decision == "bound":
        trace["error_y"] = _bounds(points, top, colour_of(tier))
    return trace


def marks(record: Record, tier: str, points: Sequence[Point], xs: Sequence[float], top: float) -> Figure:
    """The losses of points of one tier, over `xs`."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": escape(tier),
        "legendgroup": escape(tier),
        "showlegend": False,
        "x": list(xs),
        "y": [inside(loss_of(p), top) for p in points],
        "text": [hover(record, p) for p in points],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "color": colour_of(tier),
            "size": [9 if is_full(p) else 8 for p in points],
            "symbol": [_symbol(p, top) for p in points],
            "line": {"width": 1.5, "color": colour_of(tier)},
        },
    }


def legend_entry(tier: str) -> Figure:
    """A full mark for the legend, whatever the first point of the tier looks like."""
    marker = {"color": colour_of(tier), "size": 9, "symbol": "circle"}
    names = {"name": escape(tier), "legendgroup": escape(tier)}
    return {"type": "scatter", "mode": "markers", "x": [None], "y": [None], "marker": marker, **names}


def _symbol(point: Point, top: float) -> str:
    if is_beyond(point, top):
        return "triangle-up-open"
    return shape_of(point) if is_full(point) else f"{shape_of(point)}-open"


def _error_bars(points: Sequence[Point], top: float, colour: str) -> Figure:
    """Intervals around the losses; none at a point that is drawn at the edge."""
    ups = [_reach(p, p.loss_high, top) for p in points]
    downs = [_reach(p, p.loss_low, top) for p in points]
    return _bars(ups, downs, colour)


def _bounds(points: Sequence[Point], top: float, colour: str) -> Figure:
    """What is judged, from every loss up to its one-sided bound."""
    return _bars([_reach(p, p.bound, top) for p in points], [0.0] * len(points), colour)


def _bars(ups: Sequence[float], downs: Sequence[float], colour: str) -> Figure:
    style = {"thickness": 1, "width": 0, "color": faint(colour)}
    return {"type": "data", "symmetric": False, "array": list(ups), "arrayminus": list(downs), **style}


def _reach(point: Point, end: float | None, top: float) -> float:
    shown = end is not None and math.isfinite(end) and loss_of(point) < top
    return abs(end - loss_of(point)) if shown and end is not None else 0.0


def faint(colour: str) -> str:
    """A colour `#rrggbb`, half transparent."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.45)"


def _front_line(record: Record, top: float) -> Figure:
    points = [p for p in front(record.points) if loss_of(p) < top]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "Pareto front",
        "x": [p.measured.file_bytes / MB for p in points],
        "y": [loss_of(p) for p in points],
        "hoverinfo": "skip",
        "line": {"shape": "hv", "width": 1, "dash": "dot", "color": "#8a8f98"},
    }


def star(record: Record, point: Point, x: float, top: float) -> Figure:
    """The mark of the selected point at `x`."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "selected",
        "x": [x],
        "y": [inside(loss_of(point), top)],
        "text": [hover(record, point)],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"symbol": "star", "size": 17, "color": SELECTED, "line": {"width": 1, "color": "#fff"}},
    }


def _bytes_line(record: Record, tier: str) -> Figure:
    points = [p for p in record.points if p.tier == tier]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": escape(tier),
        "legendgroup": escape(tier),
        "showlegend": False,
        "yaxis": "y2",
        "x": [p.number for p in points],
        "y": [p.measured.file_bytes / MB for p in points],
        "text": [hover(record, p) for p in points],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "color": colour_of(tier),
            "size": 6,
            "symbol": [shape_of(p) if is_full(p) else f"{shape_of(p)}-open" for p in points],
        },
    }
