"""The losses of batches, as they are measured one after the other, and the evaluation that they make."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from qslm.errors import StudyError
from qslm.evaluation.evaluation import Evaluation
from qslm.tasks.statistics import interval
from qslm.tasks.task import Losses, Task, Units

ORDER_SEED = 0

Stop = Callable[[Losses], bool]


def shuffled(count: int) -> list[int]:
    """The order in which the `count` batches of a split are measured: random, and always the same."""
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(ORDER_SEED)).tolist()
    return order


def consecutive(parts: Sequence[Losses]) -> list[Units]:
    """The places in the split of the units of all its batches, given the losses of each."""
    ends = np.cumsum([0, *(len(part.values) for part in parts)])
    return [
        np.arange(start, start + len(part.values)) if part.units is None else part.units
        for start, part in zip(ends[:-1], parts, strict=True)
    ]


def seen(task: Task, known: Evaluation, places: list[Units], stop: Stop) -> Evaluation | None:
    """What an evaluation that `stop` may end gives, where `known` tells it; None where it needs further batches."""
    measured = known.losses.units
    taken = np.zeros(0, np.int64)
    for index in shuffled(len(places))[:-1]:
        taken = np.sort(np.concatenate((taken, places[index])))
        if measured is not None and not np.isin(taken, measured).all():
            return None
        losses = known.losses.take(taken)
        if stop(losses):
            found = interval(task, losses)
            value, low, high = found.value, found.low, found.high
            return replace(known, value=value, low=low, high=high, losses=losses, details={}, complete=False)
    return known if known.complete else None


@dataclass(eq=False)
class Parts:
    """What was measured of the `count` batches of a split for one allocation; `known` is what was before.

    `places` are those of each batch's units; None will do where all batches are measured at once.
    """

    task: Task
    split: str
    count: int
    places: list[Units] | None
    known: Evaluation | None = None
    measured: dict[int, Losses] = field(default_factory=dict)
    work: int = 0
    start: float = field(default_factory=time.perf_counter)

    def todo(self) -> list[int]:
        """The batches that are not known, in their order. Raises StudyError when `known` is of other batches."""
        if self.known is None or self.places is None:
            return shuffled(self.count)
        seen = set(() if self.known.losses.units is None else self.known.losses.units.tolist())
        done = [index for index, units in enumerate(self.places) if seen.issuperset(units.tolist())]
        if len(seen) != sum(len(self.places[index]) for index in done):
            raise StudyError(
                f"What was measured of the {self.split} split is not made of its batches.",
                "Start the study in a new folder.",
            )
        return [index for index in shuffled(self.count) if index not in done]

    @property
    def losses(self) -> Losses:
        """All losses so far, in the order of the split, each with its place where places are given."""
        ordered = sorted(self.measured.items())
        if self.places is None:
            return Losses.concatenate([part for _, part in ordered])
        placed = [replace(part, units=self.places[index]) for index, part in ordered]
        return Losses.concatenate(placed if self.known is None else [self.known.losses, *placed])

    def evaluation(self, file_bytes: int, complete: bool) -> Evaluation:
        """The evaluation that the losses so far make."""
        task, losses = self.task, self.losses
        if complete and any(part.units is None for part in self.measured.values()):
            losses = replace(losses, units=None)  # as the task gives them
        found = interval(task, losses)
        details = task.details(losses, self.split) if complete else {}
        seconds = time.perf_counter() - self.start + (self.known.seconds if self.known else 0.0)
        work = self.work + (self.known.work if self.known else 0)
        figures = (found.value, found.low, found.high, losses, file_bytes, seconds, details, work, complete)
        return Evaluation(task.metric, *figures)
