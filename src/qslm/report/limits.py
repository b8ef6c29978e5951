"""The limits of a budget as lines in Plotly's figures."""

import math
from html import escape
from typing import Any

from qslm.report.frame import SELECTED, limit_text
from qslm.report.record import Record
from qslm.units import MB

Figure = dict[str, Any]


def budget_lines(record: Record) -> dict[str, list[Figure]]:
    """The shapes of both limits, named `loss` and `bytes`, and the words beside them."""
    shapes, notes = [], []
    limits = record.limits
    if limits.max_loss is not None:
        shapes.append(line("loss", "paper", "y", y=limits.max_loss))
        place = {"xref": "paper", "x": 1, "y": limits.max_loss, "xanchor": "right", "yanchor": "bottom"}
        notes.append(_note("loss", limit_text(record), place))
    if limits.max_bytes is not None:
        shapes.append(line("bytes", "x", "paper", x=limits.max_bytes / MB))
        where = math.log10(limits.max_bytes / MB)
        place = {"yref": "paper", "y": 1, "x": where, "xanchor": "left", "yanchor": "top"}
        notes.append(_note("bytes", f"{limits.max_bytes / MB:.2f} MB", place))
    return {"shapes": shapes, "annotations": notes}


def line(name: str, xref: str, yref: str, x: float | None = None, y: float | None = None) -> Figure:
    """A dashed line over the whole plot, at `x` or at `y`."""
    xs = (0, 1) if x is None else (x, x)
    ys = (0, 1) if y is None else (y, y)
    ends = {"x0": xs[0], "x1": xs[1], "y0": ys[0], "y1": ys[1]}
    style = {"color": SELECTED, "width": 1.5, "dash": "dash"}
    return {"type": "line", "name": name, "xref": xref, "yref": yref, **ends, "line": style}


def _note(name: str, text: str, place: Figure) -> Figure:
    return {"name": name, "text": escape(text), "showarrow": False, "font": {"color": SELECTED}, **place}
