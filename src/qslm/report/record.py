"""What a report shows, as plain values: nothing here knows about files, networks or colours."""

from dataclasses import dataclass

from qslm.budget import Budget
from qslm.report.energy import Account
from qslm.tasks import FILE_TASKS, NAMES


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
    `units` were measured; where that is not all of them (`complete`), the rest of the verdict is foretold, and
    `comparable`, the metric beside the baseline's, is what is expected of all, while `measured` is of those seen.
    """

    number: int
    tier: str
    note: str
    measured: Measured
    comparable: float
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
class Answer:
    """The answer on the report split: the loss with its interval, and met, not shown or broken."""

    loss: float | None
    low: float | None
    high: float | None
    conclusion: str


@dataclass(frozen=True)
class Record:
    """Everything that one report shows. `source` says where the data was found, where that is known.

    energy: of older studies, and of networks of which there is no account, None.
    """

    checkpoint: str
    task: str
    source: str
    unit: str
    strategy: str
    metric: str
    higher_is_better: bool
    limits: Budget
    baseline: Measured
    selected: Measured | None
    saving: float | None
    saving_file: float | None
    answer: Answer
    points: tuple[Point, ...]
    grid: Grid | None
    energy: Account | None
    provenance: tuple[tuple[str, str], ...]

    @property
    def title(self) -> str:
        """`spikegpt-mini on wikitext2`, or `spikegpt-mini on BBC news in place of wikitext2`."""
        return f"{self.checkpoint} on {spell_data(self.task, self.source)}"

    @property
    def subtitle(self) -> str:
        """Where the data was found, where it is not the data that the task is named after; else empty."""
        return self.source if stands_in(self.task, self.source) else ""


def stands_in(task: str, source: str) -> bool:
    """Whether a published task was measured on other data: its source bears another name than the task."""
    name = "".join(filter(str.isalnum, _data_set(source))).lower()
    return task in NAMES and task not in FILE_TASKS and name not in ("", task)


def spell_data(task: str, source: str) -> str:
    """What was measured on: the task's name, or `BBC news in place of wikitext2`."""
    return f"{_data_set(source)} in place of {task}" if stands_in(task, source) else task


def _data_set(source: str) -> str:
    """The name in `name from origin (note)`."""
    return source.partition(" from ")[0]


def spell_value(metric: str, value: float) -> str:
    """Accuracy in percent, anything else with three decimals at most."""
    return f"{100 * value:.2f} %" if metric == "accuracy" else f"{value:,.3f}"


def spell_point(metric: str, point: Point) -> str:
    """The metric of an evaluation, beside the baseline's: `32.390`, or `≈ 32.275` where it ended early."""
    return f"{'' if point.complete else '≈ '}{spell_value(metric, point.comparable)}"
