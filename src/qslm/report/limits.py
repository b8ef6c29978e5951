"""The limits of a budget as lines in Plotly's figures."""

import math
from html import escape
from typing import Any

from qslm.report.frame import SELECTED, limit_text, size_beside, size_text
from qslm.report.record import Record
from qslm.units import MB

Figure = dict[str, Any]


def budget_lines(record: Record) -> dict[str, list[Figure]]:
    """The limits of the Pareto plot, named `loss` and `bytes`: lines over it, and the words beside them."""
    shapes, notes = _levels(record.limits.max_loss, "loss", "y", limit_text(record))
    size = record.limits.max_bytes
    if size:
        shapes.append(_line("bytes", "x", "paper", x=size / MB))
        anchor = {"left": "right", "right": "left"}[size_beside(record)]
        place = {"yref": "paper", "y": 1, "x": math.log10(size / MB), "xanchor": anchor, "yanchor": "top"}
        notes.append(_note("bytes", size_text(record), place))
    return {"shapes": shapes, "annotations": notes}


def loss_line(record: Record) -> dict[str, list[Figure]]:
    """The limit of the loss alone, on the axis `y`."""
    shapes, notes = _levels(record.limits.max_loss, "loss", "y", limit_text(record))
    return {"shapes": shapes, "annotations": notes}


def budget_levels(record: Record) -> dict[str, list[Figure]]:
    """The limits of the search's course: the loss on the axis `y`, the megabytes on `y2`."""
    size = record.limits.max_bytes
    losses, loss_notes = _levels(record.limits.max_loss, "loss", "y", limit_text(record))
    sizes, size_notes = _levels(size / MB if size else None, "bytes", "y2", size_text(record), logarithmic=True)
    return {"shapes": losses + sizes, "annotations": loss_notes + size_notes}


def _levels(
    height: float | None, name: str, axis: str, text: str, logarithmic: bool = False
) -> tuple[list[Figure], list[Figure]]:
    """A line at `height` and its words; none without a height. On a logarithmic axis Plotly places words by log10."""
    if height is None:
        return [], []
    where = math.log10(height) if logarithmic else height
    place = {"xref": "paper", "x": 1, "yref": axis, "y": where, "xanchor": "right", "yanchor": "bottom"}
    return [_line(name, "paper", axis, y=height)], [_note(name, text, place)]


def _line(name: str, xref: str, yref: str, x: float | None = None, y: float | None = None) -> Figure:
    """A dashed line over the whole plot, at `x` or at `y`."""
    xs = (0, 1) if x is None else (x, x)
    ys = (0, 1) if y is None else (y, y)
    ends = {"x0": xs[0], "x1": xs[1], "y0": ys[0], "y1": ys[1]}
    style = {"color": SELECTED, "width": 1.5, "dash": "dash"}
    return {"type": "line", "name": name, "xref": xref, "yref": yref, **ends, "line": style}


def _note(name: str, text: str, place: Figure) -> Figure:
    return {"name": name, "text": escape(text), "showarrow": False, "font": {"color": SELECTED}, **place}
