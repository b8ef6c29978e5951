"""The figures as PNG, for documents; drawn on canvases of their own, so that no global state is touched."""

import math
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

from qslm.report.frame import (
    SELECTED,
    colour_of,
    frame,
    front,
    inside,
    is_beyond,
    is_full,
    limit_text,
    loss_axis,
    loss_of,
    megabyte_range,
    megabyte_ticks,
    shape_of,
    size_beside,
    size_text,
    tiers_of,
)
from qslm.report.record import Grid, Point, Record
from qslm.units import MB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
INK = "#30363f"
LEGEND_WIDTH = 0.98  # of the picture, at most
MARKERS = {"circle": "o", "diamond": "D"}
LIMIT_LINE: dict[str, Any] = {"color": SELECTED, "linestyle": "--", "linewidth": 1.2}
LIMIT_TEXT: dict[str, Any] = {
    "color": SELECTED,
    "fontsize": 9,
    "zorder": 6,
    "bbox": {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
}


def save_figure(figure: "Figure", file: IO[bytes]) -> None:
    """Write a figure as PNG."""
    figure.savefig(file, format="png", dpi=DPI, facecolor="white")


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches, on a canvas of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def pareto(record: Record) -> "Figure":
    """Quality against megabytes, with paired intervals, the budget's lines and the front."""
    figure = new_figure(8, 4.8)
    axes = figure.subplots()
    low, top = frame(record)
    _front_line(axes, record, top)
    for tier in tiers_of(record.points):
        points = [p for p in record.points if p.tier == tier]
        _intervals(axes, points, colour_of(tier), top)
        draw_marks(axes, points, [p.measured.file_bytes / MB for p in points], tier, top)
    for point in (p for p in record.points if p.selected):
        place = ([point.measured.file_bytes / MB], [inside(loss_of(point), top)])
        axes.plot(*place, "*", color=SELECTED, markersize=17, markeredgecolor="white", label="selected", zorder=5)
    axes.set_ylim(low, top)
    axes.set_xscale("log")
    axes.set_xticks(megabyte_ticks(record.points))
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(*megabyte_range(record))
    axes.set_xlabel("model file (MB)")
    finish(axes, record, record.points, top)
    draw_legend(figure, axes)
    loss_limit(axes, record)
    if record.limits.max_bytes is not None:
        size = record.limits.max_bytes / MB
        axes.axvline(size, **LIMIT_LINE)
        away, anchor = {"left": (-4, "right"), "right": (4, "left")}[size_beside(record)]
        beside = {"xytext": (away, -2), "textcoords": "offset points", "ha": anchor, "va": "top", **LIMIT_TEXT}
        axes.annotate(size_text(record), (size, 1), xycoords=("data", "axes fraction"), **beside)
    return figure


def tiers(record: Record) -> "Figure":
    """Loss and bytes of every evaluation in the order of the search."""
    figure = new_figure(8, 6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    low, top = frame(record)
    for tier in tiers_of(record.points):
        points = [p for p in record.points if p.tier == tier]
        numbers = [float(p.number) for p in points]
        draw_marks(upper, points, numbers, tier, top)
        if record.limits.decision == "bound":
            _bounds(upper, points, colour_of(tier), top)
        faces = [colour_of(tier) if is_full(p) else "none" for p in points]
        sizes = [p.measured.file_bytes / MB for p in points]
        lower.scatter(numbers, sizes, s=22, facecolors=faces, edgecolors=colour_of(tier))
    upper.set_ylim(low, top)
    finish(upper, record, record.points, top)
    draw_legend(figure, upper)
    loss_limit(upper, record)
    lower.set_yscale("log")
    lower.set_yticks(megabyte_ticks(record.points))
    lower.set_yticks([], minor=True)
    lower.yaxis.set_major_formatter("{x:g}")
    lower.set_ylim(*megabyte_range(record))
    lower.set_ylabel("model file (MB)")
    lower.set_xlabel("evaluation")
    lower.xaxis.get_major_locator().set_params(integer=True)
    plain_axes(lower)
    if record.limits.max_bytes is not None:
        _level(lower, record.limits.max_bytes / MB, size_text(record))
    return figure


def bits(grid: Grid) -> "Figure":
    """Bits per site: a row a block, a column a module, coloured by the logarithm of the bits."""
    figure = new_figure(2.6 + 0.62 * len(grid.modules), 1.8 + 0.36 * len(grid.blocks))
    axes = figure.subplots()
    values = [[math.nan if b is None else math.log2(b) for b in row] for row in grid.bits]
    axes.pcolormesh(values, cmap="viridis_r", vmin=0, vmax=5, edgecolors="white", linewidth=2)
    axes.invert_yaxis()
    for i, row in enumerate(grid.bits):
        for j, b in enumerate(row):
            if b is not None:
                ink = "white" if math.log2(b) > 2.6 else "black"
                axes.text(j + 0.5, i + 0.5, f"{b:g}", ha="center", va="center", color=ink, fontsize=9)
    columns, rows = ([i + 0.5 for i in range(len(names))] for names in (grid.modules, grid.blocks))
    slanted: dict[str, Any] = {"rotation": 45, "ha": "left", "rotation_mode": "anchor"}
    axes.set_xticks(columns, plain_text(grid.modules), fontsize=9, **slanted)
    axes.set_yticks(rows, plain_text(grid.blocks), fontsize=9)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0, colors=INK)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title("bits per stored weight", fontsize=10, color=INK)
    return figure


def plain_text(texts: Sequence[str]) -> list[str]:
    """Names as they are: matplotlib would read `$` as the start of a formula."""
    return [t.replace("$", r"\$") for t in texts]


def draw_marks(axes: "Axes", points: Sequence[Point], xs: Sequence[float], tier: str, top: float) -> None:
    """The losses of points of one tier, over `xs`."""
    colour = colour_of(tier)
    marks = ["^" if is_beyond(p, top) else MARKERS[shape_of(p)] for p in points]
    for marker in dict.fromkeys(marks):
        chosen = [(x, p) for x, p, mark in zip(xs, points, marks, strict=True) if mark == marker]
        faces = [colour if is_full(p) else "none" for _, p in chosen]
        ys = [inside(loss_of(p), top) for _, p in chosen]
        axes.scatter([x for x, _ in chosen], ys, s=32, marker=marker, facecolors=faces, edgecolors=colour, zorder=3)
    axes.plot([], [], "o", color=colour, label=tier)


def _intervals(axes: "Axes", points: list[Point], colour: str, top: float) -> None:
    for p in points:
        if p.loss_low is not None and p.loss_high is not None and loss_of(p) < top:
            axes.vlines(p.measured.file_bytes / MB, p.loss_low, p.loss_high, colors=colour, alpha=0.45, lw=1)


def _bounds(axes: "Axes", points: list[Point], colour: str, top: float) -> None:
    """What is judged, from every loss up to its one-sided bound."""
    for p in points:
        if p.bound is not None and math.isfinite(p.bound) and loss_of(p) < top:
            axes.vlines(p.number, loss_of(p), p.bound, colors=colour, alpha=0.45, lw=1)


def _front_line(axes: "Axes", record: Record, top: float) -> None:
    points = [p for p in front(record.points) if loss_of(p) < top]
    xs, ys = [p.measured.file_bytes / MB for p in points], [loss_of(p) for p in points]
    axes.plot(xs, ys, drawstyle="steps-post", color="#8a8f98", linestyle=":", linewidth=1, label="Pareto front")


def loss_limit(axes: "Axes", record: Record) -> None:
    """The limit of the loss, as a line with words, where there is one."""
    if record.limits.max_loss is not None:
        _level(axes, record.limits.max_loss, limit_text(record))


def _level(axes: "Axes", height: float, text: str) -> None:
    """A limit as a dashed line at `height`, its words above its right end."""
    axes.axhline(height, **LIMIT_LINE)
    place = {"xytext": (0, 2), "textcoords": "offset points", "ha": "right", "va": "bottom", **LIMIT_TEXT}
    axes.annotate(text, (1, height), xycoords=("axes fraction", "data"), **place)


def finish(axes: "Axes", record: Record, points: Sequence[Point], top: float) -> None:
    """The axis of losses, and what the legend says of the marks that there are, those of `points`."""
    from matplotlib.ticker import PercentFormatter

    axes.set_ylabel(loss_axis(record))
    if record.limits.kind == "relative":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if not all(map(is_full, points)):
        judged = " (by the bound)" if record.limits.decision == "bound" else ""
        axes.plot([], [], "o", color=INK, markerfacecolor="none", label=f"budget not kept{judged}")
    if not all(p.complete for p in points):
        axes.plot([], [], "D", color=INK, label="ended early, foretold")
    if any(is_beyond(p, top) for p in points):
        axes.plot([], [], "^", color=INK, markerfacecolor="none", label="beyond the frame")
    plain_axes(axes)


def draw_legend(figure: "Figure", axes: "Axes") -> None:
    """The legend of `axes` above the plot, in the fewest rows with which it fits the width of the picture."""
    handles, labels = axes.get_legend_handles_labels()
    style: dict[str, Any] = {
        "loc": "outside upper center",
        "frameon": False,
        "fontsize": 9,
        "handlelength": 1.6,
        "columnspacing": 1.6,
    }
    for rows in range(1, len(labels) + 1):
        legend = figure.legend(handles, plain_text(labels), ncols=math.ceil(len(labels) / rows), **style)
        if rows == len(labels) or legend.get_window_extent().width <= LEGEND_WIDTH * figure.bbox.width:
            return
        legend.remove()


def plain_axes(axes: "Axes") -> None:
    """A faint grid, and no frame."""
    axes.grid(color="#e8eaee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
