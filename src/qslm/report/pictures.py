"""The figures as PNG, for documents; drawn on canvases of their own, so that no global state is touched."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from qslm.formats.staging import commit, stage
from qslm.report.frame import (
    SELECTED,
    colour_of,
    frame,
    front,
    inside,
    limit_text,
    loss_axis,
    loss_of,
    megabyte_range,
    megabyte_ticks,
    tiers_of,
)
from qslm.report.record import Grid, Point, Record
from qslm.units import MB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
INK = "#30363f"


def draw_pictures(record: Record, folder: Path) -> list[Path]:
    """Write `pareto.png`, `tiers.png` and, with a selection, `bits.png` into `folder`; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {"pareto.png": pareto(record), "tiers.png": tiers(record)}
    if record.grid is not None:
        drawn["bits.png"] = bits(record.grid)
    staged = [stage(folder / name, partial(save_figure, figure)) for name, figure in drawn.items()]
    commit(staged)
    return [place for _, place in staged]


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
        _marks(axes, points, [p.measured.file_bytes / MB for p in points], tier, top)
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
    _finish(axes, record)
    _budget(axes, record, upright=True)
    return figure


def tiers(record: Record) -> "Figure":
    """Loss and bytes of every evaluation in the order of the search."""
    figure = new_figure(8, 6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    low, top = frame(record)
    for tier in tiers_of(record.points):
        points = [p for p in record.points if p.tier == tier]
        numbers = [float(p.number) for p in points]
        _marks(upper, points, numbers, tier, top)
        faces = [colour_of(tier) if p.accepted else "none" for p in points]
        sizes = [p.measured.file_bytes / MB for p in points]
        lower.scatter(numbers, sizes, s=22, facecolors=faces, edgecolors=colour_of(tier))
    upper.set_ylim(low, top)
    _finish(upper, record)
    _budget(upper, record, upright=False)
    lower.set_ylim(bottom=0)
    lower.set_ylabel("MB")
    lower.set_xlabel("evaluation")
    _plain(lower)
    if record.limits.max_bytes is not None:
        lower.axhline(record.limits.max_bytes / MB, color=SELECTED, linestyle="--", linewidth=1.2)
    return figure


def bits(grid: Grid) -> "Figure":
    """Bits per site: a row a block, a column a module, coloured by the logarithm of the bits."""
    figure = new_figure(2.6 + 0.62 * len(grid.modules), 1.8 + 0.36 * len(grid.blocks))
    axes = figure.subplots()
    values = [[math.nan if b is None else math.log2(b) for b in row] for row in grid.bits]
    axes.imshow(values, cmap="viridis_r", vmin=0, vmax=5, aspect="auto")
    for i, row in enumerate(grid.bits):
        for j, b in enumerate(row):
            if b is not None:
                ink = "white" if math.log2(b) > 2.6 else "black"
                axes.text(j, i, f"{b:g}", ha="center", va="center", color=ink, fontsize=9)
    axes.set_xticks(
        range(len(grid.modules)), plain_text(grid.modules), rotation=45, ha="left", rotation_mode="anchor", fontsize=9
    )
    axes.set_yticks(range(len(grid.blocks)), plain_text(grid.blocks), fontsize=9)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0, colors=INK)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title("bits per stored weight", fontsize=10, color=INK)
    return figure


def plain_text(texts: Sequence[str]) -> list[str]:
    """Names as they are: matplotlib would read `$` as the start of a formula."""
    return [t.replace("$", r"\$") for t in texts]


def _marks(axes: "Axes", points: list[Point], xs: list[float], tier: str, top: float) -> None:
    colour = colour_of(tier)
    beyond = [not loss_of(p) < top for p in points]
    for marker, wanted in (("o", False), ("^", True)):
        chosen = [(x, p) for x, p, b in zip(xs, points, beyond, strict=True) if b == wanted]
        if not chosen:
            continue
        faces = [colour if p.accepted or p.loss is None else "none" for _, p in chosen]
        ys = [inside(loss_of(p), top) for _, p in chosen]
        axes.scatter([x for x, _ in chosen], ys, s=32, marker=marker, facecolors=faces, edgecolors=colour, zorder=3)
    axes.plot([], [], "o", color=colour, label=tier)


def _intervals(axes: "Axes", points: list[Point], colour: str, top: float) -> None:
    for p in points:
        if p.loss_low is not None and p.loss_high is not None and loss_of(p) < top:
            axes.vlines(p.measured.file_bytes / MB, p.loss_low, p.loss_high, colors=colour, alpha=0.45, lw=1)


def _front_line(axes: "Axes", record: Record, top: float) -> None:
    points = [p for p in front(record.points) if loss_of(p) < top]
    xs, ys = [p.measured.file_bytes / MB for p in points], [loss_of(p) for p in points]
    axes.plot(xs, ys, drawstyle="steps-post", color="#8a8f98", linestyle=":", linewidth=1, label="front")


def _budget(axes: "Axes", record: Record, upright: bool) -> None:
    limits = record.limits
    style: dict[str, Any] = {"color": SELECTED, "linestyle": "--", "linewidth": 1.2}
    if limits.max_loss is not None:
        axes.axhline(limits.max_loss, **style)
        place: dict[str, Any] = {"ha": "right", "va": "bottom", "color": SELECTED, "fontsize": 9, "zorder": 6}
        place["bbox"] = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
        axes.annotate(limit_text(record), (1, limits.max_loss), xycoords=("axes fraction", "data"), **place)
    if upright and limits.max_bytes is not None:
        axes.axvline(limits.max_bytes / MB, **style)


def _finish(axes: "Axes", record: Record) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_ylabel(loss_axis(record))
    if record.limits.kind == "relative":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    _plain(axes)


def _plain(axes: "Axes") -> None:
    axes.grid(color="#e8eaee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
