"""What the page's figures and the PNG pictures share: colours, marks, the frame, the front."""

import math
from collections.abc import Sequence

from qslm.budget import spell_loss
from qslm.report.record import Point, Record
from qslm.units import MB, format_bytes

# Okabe and Ito's palette: told apart by colour-blind readers, on white and on black.
COLOURS = {
    "baseline": "#8a8f98", "global": "#3b8fd1", "sensitivity": "#cc79a7", "block": "#e69f00", "module": "#17a67c",
    "front": "#3b8fd1", "exchange": "#e69f00", "greedy": "#17a67c", "random": "#cc79a7",
    "tpe": "#d55e00", "nsga2": "#0072b2",
}  # fmt: skip
OTHER = "#7a5ab5"
SELECTED = "#e0483a"
ZERO_LOSS = 1e-9
WIDE, NARROW = (1, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)  # digits of ticks


def colour_of(tier: str) -> str:
    """The colour of a tier, the same in every figure."""
    return COLOURS.get(tier, OTHER)


def tiers_of(points: Sequence[Point]) -> list[str]:
    """The tiers in the order in which they first appear."""
    return list(dict.fromkeys(p.tier for p in points))


def loss_of(point: Point) -> float:
    """The loss that is drawn; the baseline's own is zero."""
    return 0.0 if point.loss is None else point.loss


def is_full(point: Point) -> bool:
    """Whether its mark is filled: both promises kept, or the baseline, which has none to keep."""
    return point.accepted or point.loss is None


def shape_of(point: Point) -> str:
    """The shape of its mark inside the frame: a diamond where the evaluation ended early, else a circle."""
    return "circle" if point.complete else "diamond"


def is_beyond(point: Point, top: float) -> bool:
    """Whether its loss lies above the frame, or is not a number."""
    return not loss_of(point) < top


def frame(record: Record) -> tuple[float, float]:
    """The lowest and highest loss that the figures show; what lies above is drawn at the top edge.

    A network at two bits can be a thousand times worse than one that keeps the promise: shown to scale it would
    hide every difference that matters.
    """
    kept = [p for p in record.points if is_full(p) or p.selected]
    limit = record.limits.max_loss or 0.0
    every = sorted(filter(math.isfinite, map(loss_of, record.points))) or [0.0]
    highs = list(filter(math.isfinite, (max(loss_of(p), p.loss_high or 0.0) for p in kept)))
    lows = list(filter(math.isfinite, (p.loss_low or 0.0 for p in kept)))
    wanted = max([2.5 * limit, 1.3 * max(highs, default=0.0), every[len(every) // 2], ZERO_LOSS])
    needed = 1.08 * max([every[-1], limit, *highs]) + ZERO_LOSS
    bottom, top = min([0.0, *lows]), min(wanted, needed)
    margin = 0.06 * (top - bottom)
    return bottom - margin, top + margin


def megabyte_ticks(points: Sequence[Point]) -> list[float]:
    """Round numbers for the logarithmic axis of megabytes."""
    return round_ticks([p.measured.file_bytes / MB for p in points])


def round_ticks(values: Sequence[float]) -> list[float]:
    """Round numbers for a logarithmic axis of such values: some of every power of ten in reach, more of them where the
    values lie close together.
    """
    found = [value for value in values if value > 0] or [1.0]
    digits = WIDE if max(found) > 4 * min(found) else NARROW
    powers = range(math.floor(math.log10(min(found))) - 1, math.ceil(math.log10(max(found))) + 1)
    return [float(f"{digit}e{power}") for power in powers for digit in digits]


def megabyte_range(record: Record) -> tuple[float, float]:
    """The ends of the axis of megabytes, in MB: every point and the budget's line lie inside."""
    sizes = [p.measured.file_bytes for p in record.points if p.measured.file_bytes > 0]
    sizes += [record.limits.max_bytes] if record.limits.max_bytes else []
    return 0.85 * min(sizes, default=MB) / MB, 1.18 * max(sizes, default=MB) / MB


def size_beside(record: Record) -> str:
    """The side of the memory limit's line on which its words stand, "left" or "right": the one with more room."""
    low, high = map(math.log, megabyte_range(record))
    size = record.limits.max_bytes
    return "left" if size and math.log(size / MB) > (low + high) / 2 else "right"


def inside(value: float, top: float) -> float:
    """`value`, or the top edge (a little below it) when it lies beyond or is not a number."""
    return value if value < top else top - 0.02 * abs(top)


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both bytes and loss, by rising size."""
    best, line = float("inf"), []
    for point in sorted(points, key=lambda p: (p.measured.file_bytes, loss_of(p))):
        if loss_of(point) < best:
            best = loss_of(point)
            line.append(point)
    return line


def loss_axis(record: Record) -> str:
    """The title of the axis of losses."""
    unit = {"points": "points", "relative": "relative"}.get(record.limits.kind, "")
    way = "lost" if record.higher_is_better else "above the baseline"
    return f"{record.metric} {way}" + (f" ({unit})" if unit else "")


def limit_text(record: Record) -> str:
    """`limit 2.00 points`; empty without a limit on the loss."""
    limit = record.limits.max_loss
    return "" if limit is None else f"limit {spell_loss(record.limits.kind, limit, signed=False)}"


def size_text(record: Record) -> str:
    """`limit 4.05 MB`; empty without a limit on the memory."""
    size = record.limits.max_bytes
    return "" if size is None else f"limit {format_bytes(size).partition(' (')[0]}"
