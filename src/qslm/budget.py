"""The two promises, memory and quality: how they are read, judged and chosen under."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

from qslm.errors import BudgetError
from qslm.units import MB, MiB, format_bytes

Kind = Literal["points", "absolute", "relative"]
Decision = Literal["bound", "point"]
Preference = Literal["smallest", "score"]
Conclusion = Literal["met", "not shown", "broken", "no limit"]

ROUNDING = 1e-9  # a drop of 2 points computed as 2.0000000000000004 is a drop of 2 points
_NUMBER = re.compile(r"\d+(\.\d*)?|\.\d+")


@dataclass(frozen=True)
class Verdict:
    """Whether an allocation keeps the quality limit and the memory limit.

    undecided: an evaluation that ended early does not say whether the quality limit is kept; then it is not.
    """

    quality_ok: bool
    memory_ok: bool
    undecided: bool = False

    @property
    def accepted(self) -> bool:
        """Whether it keeps both."""
        return self.quality_ok and self.memory_ok


@dataclass(frozen=True)
class Candidate:
    """What a budget must know of an evaluated allocation.

    file_bytes: size of the model file. memory_ratio: tensor bytes against float32. value: the metric
    (accuracy as a fraction). loss, bound: how much worse than the baseline, measured, and its one-sided upper
    bound. activation_bits: of its spike counts, 0 without any.
    """

    key: str
    file_bytes: int
    memory_ratio: float
    value: float
    loss: float
    bound: float
    activation_bits: float = 0.0


@dataclass(frozen=True)
class Budget:
    """The most memory (bytes of the model file) and the most loss of quality; None is no limit.

    kind: the unit of `max_loss`: percentage points of a share, an absolute or a relative rise (0.02 is 2 %).
    decision: what has to keep `max_loss`, the one-sided bound of the loss or, as in the paper, its measured
    value. prefer: the smallest accepted candidate, or the best by `score` with `mu`; where it is not said, giving
    `mu` asks for the score. Once made, neither is None. Raises BudgetError on numbers that make no budget.
    """

    max_bytes: int | None
    max_loss: float | None
    kind: Kind
    decision: Decision = "bound"
    prefer: Preference | None = None
    mu: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefer", self.prefer or ("smallest" if self.mu is None else "score"))
        object.__setattr__(self, "mu", 0.0 if self.mu is None else self.mu)
        for name, value in (("max_bytes", self.max_bytes), ("max_loss", self.max_loss), ("mu", self.mu)):
            if value is not None and not (isinstance(value, Real) and math.isfinite(value) and value >= 0):
                raise BudgetError(f"{name} = {value!r} makes no budget.", "Give a number that is not negative.")
        for name, choices in (("kind", Kind), ("decision", Decision), ("prefer", Preference)):
            if getattr(self, name) not in get_args(choices):
                allowed = ", ".join(get_args(choices))
                raise BudgetError(f"{name} = {getattr(self, name)!r} is not known.", f"Choose one of: {allowed}.")

    def verdict(self, file_bytes: int, loss: float, bound: float) -> Verdict:
        """Judge an allocation by its file's bytes, its measured loss and the bound of that loss.

        A loss that is no finite number keeps no budget, not even one without a limit.
        """
        decisive = bound if self.decision == "bound" else loss
        quality_ok = math.isfinite(loss) and (self.max_loss is None or _at_most(decisive, self.max_loss))
        return Verdict(quality_ok, self.max_bytes is None or file_bytes <= self.max_bytes)

    def select(self, candidates: Sequence[Candidate], *, higher_is_better: bool | None = None) -> Candidate | None:
        """The preferred one of the candidates that keep the budget; None when none does.

        higher_is_better: the direction of the metric, for the score; by default that of the kind (points are
        of a share). Ties go to the smaller file, then to the smaller loss, then to the smaller key.
        """
        accepted = [one for one in candidates if self.verdict(one.file_bytes, one.loss, one.bound).accepted]
        upwards = self.kind == "points" if higher_is_better is None else higher_is_better
        return min(accepted, key=self.order(upwards), default=None)

    def score(self, value: float, memory_ratio: float, higher_is_better: bool) -> float:
        """Eq. 1 with this budget's mu."""
        return score(value, memory_ratio, self.mu or 0.0, higher_is_better)

    def order(self, higher_is_better: bool) -> Callable[[Candidate], tuple[float | str, ...]]:
        """By which the preferred of several candidates comes first."""

        def by_size(one: Candidate) -> tuple[float | str, ...]:
            return one.file_bytes, one.activation_bits, one.loss, one.key

        def by_score(one: Candidate) -> tuple[float | str, ...]:
            worth = self.score(one.value, one.memory_ratio, higher_is_better)
            return -worth if higher_is_better else worth, *by_size(one)

        return by_score if self.prefer == "score" else by_size


def score(value: float, memory_ratio: float, mu: float, higher_is_better: bool) -> float:
    """The trade-off of quality and memory, QSLM Eq. 1: S = A - mu m_q/m_o, or S = P + mu m_q/m_o.

    Stated in the paper: S grows with accuracy A, is better when lower for perplexity P, larger memory is
    penalised more, and mu = 0 leaves memory out. Derived here, since the formula could not be read: the
    algebra, A in percentage points (100 times `value`), m_q/m_o as quantized against float32 tensor bytes; so
    mu is in points of the metric per unit of memory ratio. The highest S is best for accuracy, the lowest for
    perplexity.
    """
    return 100 * value - mu * memory_ratio if higher_is_better else value + mu * memory_ratio


def parse_loss(max_drop: str | float | None = None, max_rise: str | float | None = None) -> tuple[float | None, Kind]:
    """Read --max-drop (percentage points: "2", "2%") or --max-rise ("1.0" of the metric, "2%" of the
    baseline).

    Returns (limit, kind), the limit None when neither is given. Raises BudgetError on both, and on what is no
    number.
    """
    if max_drop is not None and max_rise is not None:
        raise BudgetError("Both --max-drop and --max-rise are given.", "A drop is for accuracy, a rise for perplexity.")
    if max_drop is not None:
        points, _ = _parse_number("--max-drop", max_drop)
        if points > 100:
            raise BudgetError(f"--max-drop {max_drop} is more than 100 points.", "Give points of accuracy, such as 2.")
        return points, "points"
    if max_rise is None:
        return None, "absolute"
    rise, percent = _parse_number("--max-rise", max_rise)
    return (rise / 100, "relative") if percent else (rise, "absolute")


def check_possible(max_bytes: int | None, smallest_bytes: int, float32_bytes: int | None = None) -> None:
    """Refuse a memory budget below the smallest file that any allocation gives; the nearest possible one is
    named.

    float32_bytes: all tensors in float32, to name it as a share too. Raises BudgetError.
    """
    if max_bytes is None or max_bytes >= smallest_bytes:
        return
    names, units = (("kB", "KiB"), (10**3, 2**10)) if smallest_bytes < MB else (("MB", "MiB"), (MB, MiB))
    decimal, binary = (f"{_up(smallest_bytes / unit, 2)} {name}" for unit, name in zip(units, names, strict=True))
    share = f", {_up(100 * smallest_bytes / float32_bytes, 1)}% of float32" if float32_bytes else ""
    raise BudgetError(
        f"A memory budget of {max_bytes:,} bytes, {format_bytes(max_bytes)}, cannot be kept: "
        f"the smallest model file has {smallest_bytes:,} bytes.",
        f"The nearest possible budget is {decimal} ({binary}{share}), to the byte: --max-memory {smallest_bytes}B.",
    )


def conclude(loss: float, low: float, high: float, limit: float | None) -> Conclusion:
    """What the report split says of the limit: "met" when the whole two-sided interval keeps it, "broken"
    when the whole interval is beyond it, else "not shown"; "no limit" where nothing was promised.
    """
    if limit is None:
        return "no limit"
    if _at_most(max(loss, high), limit):
        return "met"
    return "not shown" if _at_most(low, limit) else "broken"


def spell_loss(kind: str, loss: float, signed: bool = True) -> str:
    """A loss in words of its unit: `+0.41 points`, `+1.20 %`, `+0.310`; a small one with two digits of its own."""
    sign = "+" if signed else ""
    if kind == "points":
        return f"{_digits(loss, 2, sign)} points"
    return f"{_digits(100 * loss, 2, sign)} %" if kind == "relative" else _digits(loss, 3, sign)


def _digits(value: float, places: int, sign: str) -> str:
    """`value` with so many places, or more where they would leave nothing, or one digit alone, of it."""
    small = ROUNDING < abs(value) < 10.0 ** (1 - places)
    return f"{value:{sign}.2g}" if small and round(value, places) != value else f"{value:{sign}.{places}f}"


def _at_most(value: float, limit: float) -> bool:
    return value <= limit + ROUNDING * max(1.0, limit)


def _parse_number(option: str, given: str | float) -> tuple[float, bool]:
    """(number, whether a percent sign followed)."""
    text = str(given).strip()
    digits = text.removesuffix("%").rstrip()
    if digits.startswith("-") and _NUMBER.fullmatch(digits[1:]):
        raise BudgetError(f"{option} {given} is negative.", "Give a number that is not, such as 2, 1.5 or 2%.")
    if not _NUMBER.fullmatch(digits):
        raise BudgetError(f"{option} {given} is not a number.", "Give one that is not negative, such as 2, 1.5 or 2%.")
    return float(digits), text.endswith("%")


def _up(value: float, digits: int) -> str:
    """`value` rounded up, so that what is printed is enough."""
    return f"{math.ceil(value * 10**digits) / 10**digits:.{digits}f}"
