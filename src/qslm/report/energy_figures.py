"""The account of energy as figures, for the page and as PNG: all candidates against quality, the selection by block."""

from collections.abc import Callable, Sequence
from html import escape
from math import log10
from typing import TYPE_CHECKING, Any

from qslm.energy import FLOATING, INTEGER, RAN, SPELLED
from qslm.report import pictures
from qslm.report.energy import MICRO, Account, Spent
from qslm.report.figures import faint, hover, legend_entry, marks, percent, star
from qslm.report.frame import SELECTED, frame, inside, loss_axis, loss_of, round_ticks, tiers_of
from qslm.report.limits import loss_line
from qslm.report.record import Point, Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Part = Callable[[Spent], float]
PARTS: dict[str, Part] = {"memory": lambda spent: spent.memory, "computing": lambda spent: spent.compute}
COLOURS = {RAN: "#3b8fd1", INTEGER: "#e69f00", FLOATING: "#8a8f98"}
BAR = 0.26  # of the distance of two blocks
PALE = 0.45


def candidates(record: Record, account: Account) -> dict[str, Any]:
    """The loss of every candidate over the uJ of a decoded token: memory on the left, computing on the right."""
    low, top = frame(record)
    known = _known(record, account)
    data: list[dict[str, Any]] = []
    for place, part in enumerate(PARTS.values()):
        axis = {"xaxis": "x2"} if place else {}
        for tier in tiers_of([point for point, _ in known]):
            pairs = [(point, spent) for point, spent in known if point.tier == tier]
            points, xs = [point for point, _ in pairs], [part(spent) / MICRO for _, spent in pairs]
            texts: dict[str, Any] = {"text": [_hover(record, point, spent) for point, spent in pairs]}
            data.append(marks(record, tier, points, xs, top) | texts | axis)
        for point, spent in known:
            if point.selected:
                texts = {"text": [_hover(record, point, spent)], "showlegend": not place}
                data.append(star(record, point, part(spent) / MICRO, top) | texts | axis)
    data += [legend_entry(tier) for tier in tiers_of([point for point, _ in known])]
    (left, first), (right, second) = PARTS.items()
    layout: dict[str, Any] = {
        "xaxis": {"domain": [0, 0.48], **_axis(left, [first(spent) for _, spent in known])},
        "xaxis2": {"domain": [0.52, 1], "anchor": "y", **_axis(right, [second(spent) for _, spent in known])},
        "yaxis": {"title": {"text": escape(loss_axis(record))}, "range": [low, top], **percent(record)},
    }
    return {"data": data, "layout": layout | loss_line(record)}


def by_block(account: Account) -> dict[str, Any]:
    """The uJ of a token by block, bars of all machines side by side: decoding above, the prefill below."""
    data: list[dict[str, Any]] = []
    for place, one in enumerate(account.passes):
        for machine, spent in one.spent.items():
            for name, part in PARTS.items():
                colour, spelled = COLOURS[machine], escape(SPELLED[machine])
                data.append(
                    {
                        "type": "bar",
                        "name": f"{spelled}: {name}",
                        "legendgroup": f"{machine} {name}",
                        "showlegend": not place,
                        "x": _places(account, machine),
                        "y": [part(one) / MICRO for one in spent],
                        "width": BAR,
                        "yaxis": "y2" if place else "y",
                        "marker": {"color": faint(colour) if name == "memory" else colour},
                        "customdata": [escape(block) for block in account.blocks],
                        "hovertemplate": f"<b>%{{customdata}}</b>, {spelled}<br>{name} %{{y:,.3f}} uJ<extra></extra>",
                    }
                )
    ticks = {"tickvals": list(range(len(account.blocks))), "ticktext": [escape(block) for block in account.blocks]}
    above, below = account.passes
    layout = {
        "barmode": "stack",
        "xaxis": {"anchor": "y2", "showgrid": False, **ticks},
        "yaxis": {"domain": [0.55, 1], "title": {"text": _title(above.name)}},
        "yaxis2": {"domain": [0, 0.45], "title": {"text": _title(below.name)}},
    }
    return {"data": data, "layout": layout}


def draw_candidates(record: Record, account: Account) -> "Figure":
    """`candidates` for a PNG."""
    figure = pictures.new_figure(8, 4.8)
    panels = figure.subplots(1, 2, sharey=True)
    low, top = frame(record)
    known = _known(record, account)
    for axes, (name, part) in zip(panels, PARTS.items(), strict=True):
        for tier in tiers_of([point for point, _ in known]):
            pairs = [(point, part(spent) / MICRO) for point, spent in known if point.tier == tier]
            pictures.draw_marks(axes, [point for point, _ in pairs], [x for _, x in pairs], tier, top)
        for point, spent in known:
            if point.selected:
                place = ([part(spent) / MICRO], [inside(loss_of(point), top)])
                style: dict[str, Any] = {"color": SELECTED, "markersize": 17, "markeredgecolor": "white", "zorder": 5}
                axes.plot(*place, "*", label="selected", **style)
        values = [part(spent) / MICRO for _, spent in known]
        if any(values):
            axes.set_xscale("log")
            axes.set_xticks(round_ticks(values))
            axes.set_xticks([], minor=True)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_xlim(*_reach(values))
        axes.set_xlabel(_title(name))
        pictures.finish(axes, record, [point for point, _ in known], top)
        pictures.loss_limit(axes, record)
    panels[0].set_ylim(low, top)
    panels[1].set_ylabel("")
    pictures.draw_legend(figure, panels[0])
    return figure


def draw_by_block(account: Account) -> "Figure":
    """`by_block` for a PNG."""
    figure = pictures.new_figure(max(8, 0.6 * len(account.blocks)), 6)
    panels = figure.subplots(2, 1, sharex=True)
    for axes, one in zip(panels, account.passes, strict=True):
        for machine, spent in one.spent.items():
            places, colour = _places(account, machine), COLOURS[machine]
            below = [0.0] * len(spent)
            for name, part in PARTS.items():
                heights = [part(one) / MICRO for one in spent]
                alpha = PALE if name == "memory" else 1.0
                label = f"{SPELLED[machine]}: {name}"
                axes.bar(places, heights, BAR, bottom=below, color=colour, alpha=alpha, label=label)
                below = [one + other for one, other in zip(below, heights, strict=True)]
        axes.set_ylabel(_title(one.name))
        pictures.plain_axes(axes)
    names = pictures.plain_text(account.blocks)
    panels[1].set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
    pictures.draw_legend(figure, panels[0])
    return figure


def _known(record: Record, account: Account) -> list[tuple[Point, Spent]]:
    """The points that were measured whole, and what they take."""
    pairs = zip(record.points, account.decoding, strict=True)
    return [(point, spent) for point, spent in pairs if spent is not None]


def _hover(record: Record, point: Point, spent: Spent) -> str:
    parts = ", ".join(f"{name} {part(spent) / MICRO:,.3f} uJ" for name, part in PARTS.items())
    return f"{hover(record, point)}<br>decoding a token: {parts}"


def _places(account: Account, machine: str) -> list[float]:
    """Where the bars of a machine stand, around the places 0, 1, ... of the blocks."""
    beside = list(COLOURS).index(machine) - (len(COLOURS) - 1) / 2
    return [place + BAR * beside for place in range(len(account.blocks))]


def _axis(name: str, energies: Sequence[float]) -> dict[str, Any]:
    """The logarithmic axis of uJ a token; a plain one where nothing is above 0."""
    values, title = [pj / MICRO for pj in energies], {"title": {"text": _title(name)}}
    if not any(values):
        return title
    edges = [log10(edge) for edge in _reach(values)]
    return {**title, "type": "log", "tickvals": round_ticks(values), "range": edges}


def _reach(values: Sequence[float]) -> tuple[float, float]:
    found = [value for value in values if value > 0]
    return 0.85 * min(found), 1.18 * max(found)


def _title(name: str) -> str:
    return f"{name}, uJ a token"
