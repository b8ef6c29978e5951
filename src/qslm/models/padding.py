"""Which positions of a call of a network are text: what is counted while it runs leaves padding out.

A network that is given padding is told so by the argument that its `forward` names `mask`: bool (rows, tokens), True
for a real token. Networks without one are given text alone.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(eq=False)
class Text:
    """The positions of text in a call: `mask` bool (rows, tokens); None where all are."""

    mask: Tensor | None = None

    @classmethod
    def of(cls, model: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> "Text":
        """What a call of a network says."""
        given = inspect.signature(model.forward).bind_partial(*arguments, **keywords).arguments
        ids, mask = next(iter(given.values()), None), given.get("mask")
        if isinstance(ids, Tensor) and isinstance(mask, Tensor) and mask.dtype == torch.bool:
            return cls(mask if mask.dim() == 2 and mask.shape == ids.shape[:2] else None)
        return cls()

    def rows(self, x: Tensor) -> slice | Tensor:
        """An index of the rows of x.flatten(0, -2) that are of text, x (..., rows, tokens, width).

        All rows of an x that has other positions, as what was pooled has.
        """
        positions = x.shape[:-1]
        if self.mask is None or positions[-2:] != self.mask.shape:
            return slice(None)
        return self.mask.expand(positions).flatten()


@contextmanager
def text_of(model: nn.Module) -> Iterator[Text]:
    """The text of the call in which the network is, in the meantime."""
    text = Text()

    def look(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        text.mask = Text.of(module, arguments, keywords).mask

    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield text
    finally:
        handle.remove()
