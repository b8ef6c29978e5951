"""What a task is: data in fixed batches, and the losses of a model on one of them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from qslm.errors import TaskError
from qslm.tasks.fingerprint import fingerprint

Floats = npt.NDArray[np.float64]
Units = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Losses:
    """What a model lost on each unit (window, sentence) of a split.

    values: float64 `(units,)`, the sum of the losses in a unit (a window's nats; 1 for a sentence that is
    right, 0 for one that is wrong). weights: float64 `(units,)`, how many losses were summed (a window's
    tokens; 1). tokens: how many tokens went through the model. units: int64 `(units,)`, the place of each
    unit in the split; always given where only some units were measured, else where batches are not in order.
    """

    values: Floats
    weights: Floats
    tokens: int
    units: Units | None = None

    @staticmethod
    def concatenate(parts: "Sequence[Losses]") -> "Losses":
        """The losses of all batches, in the order of the split."""
        values = np.concatenate([part.values for part in parts]) if parts else np.zeros(0)
        weights = np.concatenate([part.weights for part in parts]) if parts else np.zeros(0)
        tokens = sum(part.tokens for part in parts)
        placed = [part.units for part in parts if part.units is not None]
        if not parts or len(placed) < len(parts):
            return Losses(values, weights, tokens)
        units = np.concatenate(placed)
        order = np.argsort(units, kind="stable")
        return Losses(values[order], weights[order], tokens, units[order])

    def without_each(self) -> Floats:
        """Weighted means `(units,)` of the losses that remain when one unit is left out."""
        means: Floats = (self.values.sum() - self.values) / (self.weights.sum() - self.weights)
        return means

    def without(self, unit: int) -> "Losses":
        """The losses of all units but one."""
        units = None if self.units is None else np.delete(self.units, unit)
        return Losses(np.delete(self.values, unit), np.delete(self.weights, unit), self.tokens, units)

    def take(self, units: Units) -> "Losses":
        """The losses of the units at these places `(taken,)` of the split, in the order given; `tokens` stays.

        Raises TaskError when a place is not among them.
        """
        if self.units is None:
            found, here = units, (units >= 0) & (units < len(self.values))
        else:
            order = np.argsort(self.units, kind="stable")
            after = np.searchsorted(self.units, units, sorter=order)
            found = order[np.minimum(after, len(order) - 1)] if len(order) else np.zeros_like(units)
            here = np.isin(units, self.units)
        if not here.all():
            raise TaskError(
                f"There is no loss of unit {units[~here][0]}: {len(self.values)} units were measured.",
                "Compare evaluations of the same split.",
            )
        return Losses(self.values[found], self.weights[found], self.tokens, units)


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's parameters, where its input belongs."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


class Task(ABC):
    """Data and a metric. Subclass it with two methods, and the whole of qslm works with your own.

    The exact-match rate of a model that returns logits `(batch, classes)`:

        class ExactMatch(Task):
            name, metric, unit = "my-set", "exact match", "sample"

            def batches(self, split):
                return [(ids, labels) for ids, labels in my_batches[split]]

            def losses(self, model, batch):
                ids, labels = batch
                right = (model(ids).argmax(-1) == labels).double().numpy()
                return Losses(right, np.ones(len(right)), tokens=ids.numel())

    The metric is the weighted mean of the losses; override `reduce` for another one that is smooth in them (intervals
    follow it by the jackknife, which a median or a quantile deceives), and set `higher_is_better` to False for one
    that falls as models get better. Set `log_scale` to True where it is the exponential of a mean, such as
    perplexity, or another positive metric whose logarithm varies evenly: its interval is taken of the logarithm, so
    it is never negative. Splits are "calibrate" (for quantizers that look at data), "search" and "report"; a task may
    have others. Batches have fixed shapes and a fixed order: what is measured must not depend on chance.
    """

    name: str = "own"
    metric: str = "score"
    higher_is_better: bool = True
    log_scale: bool = False
    unit: str = "sample"
    evaluation_split: str = "report"  # what a plain evaluation, outside of a search, measures
    source: str = ""  # where the data was found
    exchangeable: bool = False  # whether the units of any first batches are a random sample of the split's units

    @abstractmethod
    def batches(self, split: str) -> Sequence[Any]:
        """The batches of a split."""

    @abstractmethod
    def losses(self, model: nn.Module, batch: Any) -> Losses:
        """What the model loses on each unit of a batch. Raises TaskError when the model does not fit."""

    def places(self, split: str) -> list[Units] | None:
        """The places in the split of every batch's units, as far as they are known before anything is measured.

        By default the attribute `units` of the batches, a tensor or an array `(units,)`. Where they have none, None:
        then a split is measured whole once, which counts the units of its batches, and they are in the batches'
        order. Places are needed to stop an evaluation early.
        """
        found = [getattr(batch, "units", None) for batch in self.batches(split)]
        arrays = [np.asarray(units, dtype=np.int64) for units in found if isinstance(units, torch.Tensor | np.ndarray)]
        return arrays if len(arrays) == len(found) else None

    def texts(self, split: str) -> Sequence[str] | None:
        """The texts or sentences of a split, to look for what splits share; None where there are none to look at."""
        return None

    def reduce(self, losses: Losses) -> float:
        """The metric: the weighted mean of the losses."""
        return float(losses.values.sum() / losses.weights.sum())

    def reduce_without_each(self, losses: Losses) -> Floats:
        """The metric `(units,)` with one unit left out, for each unit: what the jackknife needs."""
        if type(self).reduce is Task.reduce:
            return losses.without_each()
        return np.array([self.reduce(losses.without(unit)) for unit in range(len(losses.values))])

    def details(self, losses: Losses, split: str) -> dict[str, float]:
        """Further metrics of the same losses, by name."""
        return {}

    def fingerprint(self, split: str) -> str:
        """SHA-256, in hexadecimal, of the split's batches and of the metric: equal tasks have equal ones."""
        return fingerprint((self.name, self.metric, self.higher_is_better, self.unit, list(self.batches(split))))


REQUIRED = ("batches", "losses")
OPTIONAL = ("places", "texts", "reduce", "reduce_without_each", "details", "fingerprint")
ATTRIBUTES = ("name", "metric", "higher_is_better", "log_scale", "unit", "evaluation_split", "source", "exchangeable")


def as_task(given: Any) -> Task:
    """Take anything with the methods `batches` and `losses` for a task; what it lacks is as in `Task`.

    Its other methods and attributes count where it has them; its name is by default that of its class. Raises
    TaskError when one of the two methods is missing.
    """
    if isinstance(given, Task):
        return given
    missing = [name for name in REQUIRED if not callable(getattr(given, name, None))]
    if missing or isinstance(given, type):
        lacks = f"it has no method {' and no method '.join(missing)}" if missing else "it is a class, not an instance"
        raise TaskError(
            f"{given!r:.80} is no task: {lacks}.",
            "Give an object with the methods batches(split) and losses(model, batch), or what make_task returns.",
        )

    def batches(split: str) -> Sequence[Any]:
        found = given.batches(split)
        return found if isinstance(found, Sequence) else list(found)

    members: dict[str, Any] = {"name": type(given).__name__}
    members |= {name: getattr(given, name) for name in ATTRIBUTES if hasattr(given, name)}
    methods = ["losses", *(name for name in OPTIONAL if callable(getattr(given, name, None)))]
    members |= {name: staticmethod(getattr(given, name)) for name in methods}
    members["__reduce__"] = lambda self: (as_task, (given,))  # its class has no name to be pickled by
    adapted: type[Task] = type("AdaptedTask", (Task,), {**members, "batches": staticmethod(batches)})
    return adapted()
