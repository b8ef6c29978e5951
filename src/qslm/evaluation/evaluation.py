"""What a task measured for one allocation."""

from dataclasses import dataclass, field

from qslm.tasks.task import Losses


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A measured metric with its two-sided 95 % interval, and the losses that it was made of.

    `losses` are kept per unit (window or sentence), so that two allocations can be compared in pairs.
    `footprint_file` is the size in bytes of the model file of this allocation, `seconds` is wall-clock time,
    `details` are further figures of the task (bits per byte, ...). `work` is tokens times blocks of the anatomy that
    were forwarded for it: what was known before is not in it. Where not all batches were measured, `complete` is
    False, value and interval are those of the units seen, which `losses.units` names, and there are no details.
    """

    metric: str
    value: float
    low: float
    high: float
    losses: Losses
    footprint_file: int
    seconds: float
    details: dict[str, float] = field(default_factory=dict)
    work: int = 0
    complete: bool = True

    @property
    def tokens(self) -> int:
        """How many tokens went through the network."""
        return self.losses.tokens
