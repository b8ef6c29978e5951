"""What a network or a part of it is called with on calibration text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from qslm.calibration.text import shuffled_batches
from qslm.models.padding import Text
from qslm.tasks.task import Task


@dataclass(frozen=True, eq=False)
class Call:
    """What a module is called with: positional and keyword arguments, and which positions of them are text."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    text: Text = field(default_factory=Text)

    @property
    def tensors(self) -> list[Tensor]:
        """The arguments that are tensors."""
        return [one for one in (*self.arguments, *self.keywords.values()) if isinstance(one, Tensor)]

    @property
    def stream(self) -> Tensor:
        """The first argument, which is what a block changes."""
        first: Tensor = self.arguments[0]
        return first

    def onward(self, stream: Tensor) -> "Call":
        """The same call with another stream."""
        return replace(self, arguments=(stream, *self.arguments[1:]))

    @property
    def shape(self) -> tuple[int, int] | None:
        """Rows and tokens of the first tensor that has both; None where there is none."""
        return next(((one.shape[0], one.shape[1]) for one in self.tensors if one.dim() > 1), None)

    @property
    def tokens(self) -> int:
        """How many tokens the rows have, without padding."""
        rows, length = self.shape or (0, 0)
        return rows * length if self.text.mask is None else int(self.text.mask.sum())

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

        keywords = {name: part(value) for name, value in self.keywords.items()}
        return Call(tuple(map(part, self.arguments)), keywords, Text(part(self.text.mask)))


class _Called(Exception):  # noqa: N818 - it is no error: it ends a call whose arguments are all that is wanted
    """The module was called."""


def call_of(model: nn.Module, task: Task, batch: Any) -> Call:
    """What the task calls the network with for a batch; it is not run."""
    found = first_call(model, lambda: task.losses(model, batch)) or Call((), {})
    return replace(found, text=Text.of(model, found.arguments, found.keywords))


def first_call(module: nn.Module, run: Callable[[], object]) -> Call | None:
    """What `run` calls a module with first; nothing of it is run from there on. None where it is not called."""
    seen: list[Call] = []

    def look(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        seen.append(Call(arguments, keywords))
        raise _Called

    handle = module.register_forward_pre_hook(look, with_kwargs=True)
    try:
        run()
    except _Called:
        pass
    finally:
        handle.remove()
    return seen[0] if seen else None


def pieces(model: nn.Module, task: Task, tokens: int, most: int) -> Sequence[Call]:
    """Calls of the network on about `tokens` tokens of whole calibration batches, each of some rows.

    A piece has `most` tokens at most, padding included, or one row.
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
