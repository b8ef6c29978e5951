"""What a task measured for one allocation."""

from dataclasses import dataclass, field

from qslm.tasks.task import Losses


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A measured metric with its two-sided 95 % interval, and the losses that it was made of.

    `losses` are kept per unit (window or sentence), so that two allocations can be compared in pairs.
    `footprint_file` is the size in bytes of the model file of this allocation, `seconds` is wall-clock time,
    `details` are further figures of the task (bits per byte, ...).
    """

    metric: str
    value: float
    low: float
    high: float
    losses: Losses
    footprint_file: int
    seconds: float
    details: dict[str, float] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """How many tokens went through the network."""
        return self.losses.tokens
