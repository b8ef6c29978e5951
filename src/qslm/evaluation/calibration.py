"""What is looked at on calibration text: which split it is, what the network is called with, and who sees it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qslm.anatomy import Anatomy
from qslm.errors import QslmError
from qslm.tasks.task import Task

SEED = 0


def calibration_split(task: Task) -> str:
    """The split that costs are estimated on: "calibrate", or where the task has none "search"."""
    try:
        task.batches("calibrate")
    except (QslmError, KeyError):
        return "search"
    return "calibrate"


def shuffled_batches(task: Task) -> list[Any]:
    """The batches of the calibration split in random order, always the same."""
    batches = task.batches(calibration_split(task))
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(SEED)).tolist()
    return [batches[index] for index in order]


def linear_layers(model: nn.Module, anatomy: Anatomy) -> Iterator[tuple[str, nn.Linear]]:
    """Every linear layer whose matrix is a site, with the site's name; layers that share a matrix share the name."""
    for path, module in model.named_modules(remove_duplicate=False):
        name = f"{path}.weight" if path else "weight"
        if isinstance(module, nn.Linear) and name in anatomy:
            yield anatomy[name].name, module


@dataclass(frozen=True, eq=False)
class Call:
    """What a module is called with: positional and keyword arguments."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    @property
    def tensors(self) -> list[Tensor]:
        """The arguments that are tensors."""
        return [one for one in (*self.arguments, *self.keywords.values()) if isinstance(one, Tensor)]

    @property
    def shape(self) -> tuple[int, int] | None:
        """Rows and tokens of the first tensor that has both; None where there is none."""
        return next(((one.shape[0], one.shape[1]) for one in self.tensors if one.dim() > 1), None)

    @property
    def tokens(self) -> int:
        """How many tokens the rows have, padding included."""
        rows, length = self.shape or (0, 0)
        return rows * length

    def cut(self, rows: slice, most: int | None = None) -> "Call":
        """Some rows of every tensor that has them, and at most so many of their first tokens."""
        shape = self.shape

        def part(value: Any) -> Any:
            if not isinstance(value, Tensor) or shape is None:
                return value
            if value.dim() and len(value) == shape[0]:
                value = value[rows]
                if value.dim() > 1 and value.shape[1] == shape[1]:
                    value = value[:, :most]
            return value.clone()  # what was made in inference mode takes no part in a gradient

        return Call(tuple(map(part, self.arguments)), {name: part(value) for name, value in self.keywords.items()})


class _Called(Exception):  # noqa: N818 - it is no error: it ends a call whose arguments are all that is wanted
    """The network was called."""


def call_of(model: nn.Module, task: Task, batch: Any) -> Call:
    """What the task calls the network with for a batch; it is not run."""
    seen: list[Call] = []

    def look(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        seen.append(Call(arguments, keywords))
        raise _Called

    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        task.losses(model, batch)
    except _Called:
        pass
    finally:
        handle.remove()
    return seen[0] if seen else Call((), {})


def pieces(model: nn.Module, task: Task, tokens: int, most: int) -> Sequence[Call]:
    """Calls of the network on about `tokens` tokens of whole calibration batches, each of some rows.

    A piece has `most` tokens at most, or one row.
    """
    found: list[Call] = []
    for batch in shuffled_batches(task):
        call = call_of(model, task, batch)
        rows, length = call.shape or (0, 0)
        step = max(1, most // max(length, 1))
        found += [call.cut(slice(start, start + step)) for start in range(0, rows, step)]
        if sum(piece.tokens for piece in found) >= tokens:
            break
    return found
