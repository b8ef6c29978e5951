"""What a report shows, as plain values: nothing here knows about files, networks or colours."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """One measurement: `value` with its two-sided interval, and `file_bytes` of the model file."""

    value: float
    low: float
    high: float
    file_bytes: int


@dataclass(frozen=True)
class Point:
    """One evaluation of the study on the search split.

    `loss` is how much worse than the baseline (positive is worse), `loss_low` and `loss_high` its two-sided paired
    interval, `bound` its one-sided upper bound, all in the unit of the limit; None where nothing was compared.
    `units` were measured; where that is not all of them (`complete`), the rest of the verdict is foretold.
    """

    number: int
    tier: str
    note: str
    measured: Measured
    loss: float | None
    loss_low: float | None
    loss_high: float | None
    bound: float | None
    quality_ok: bool
    memory_ok: bool
    complete: bool
    units: int
    selected: bool
    summary: str

    @property
    def accepted(self) -> bool:
        """Whether both promises were kept."""
        return self.quality_ok and self.memory_ok


@dataclass(frozen=True)
class Grid:
    """Bits per stored weight: `bits[i][j]` of module `modules[j]` in block `blocks[i]`; None where there is none."""

    blocks: tuple[str, ...]
    modules: tuple[str, ...]
    bits: tuple[tuple[float | None, ...], ...]
    texts: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Limits:
    """The budget: `max_loss` in the unit of `kind` ("points", "absolute", "relative"); None where there is none."""

    max_bytes: int | None
    max_loss: float | None
    kind: str
    decision: str


@dataclass(frozen=True)
class Answer:
    """The answer on the report split: the loss with its interval, and met, not shown or broken."""

    loss: float | None
    low: float | None
    high: float | None
    conclusion: str


@dataclass(frozen=True)
class Record:
    """Everything that one report shows."""

    checkpoint: str
    task: str
    unit: str
    strategy: str
    metric: str
    higher_is_better: bool
    limits: Limits
    baseline: Measured
    selected: Measured | None
    saving: float | None
    saving_file: float | None
    answer: Answer
    points: tuple[Point, ...]
    grid: Grid | None
    provenance: tuple[tuple[str, str], ...]

    @property
    def title(self) -> str:
        """`spikegpt-mini on wikitext2`."""
        return f"{self.checkpoint} on {self.task}"


def spell_value(metric: str, value: float) -> str:
    """Accuracy in percent, anything else with three decimals at most."""
    return f"{100 * value:.2f} %" if metric == "accuracy" else f"{value:,.3f}"
