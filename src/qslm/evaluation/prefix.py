"""Outputs of blocks, kept within a bound in bytes, so that an allocation is run only from where it differs.

An output is that of one block for one batch, under a prefix: the formats of everything up to and with that block.
It is kept while there is room. Once there is none, only the deepest prefix that an earlier evaluation had too pushes
out what was used least recently, and never what the evaluation that goes on uses.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PREFIX_BYTES = 2**29
Key = tuple[str, Hashable]  # prefix and batch


class NestError(TypeError):
    """A block gives something else than tensors in tuples, lists and dictionaries."""


@dataclass(frozen=True, eq=False)
class Kept:
    """The output of a block: a nest of tensors of its own, `size` bytes in all."""

    output: Any
    size: int


class PrefixCache:
    """Block outputs of at most `bytes_bound` bytes together; 0 keeps none."""

    def __init__(self, bytes_bound: int = PREFIX_BYTES) -> None:
        self.bytes_bound = bytes_bound
        self.bytes = 0
        self._kept: OrderedDict[Key, Kept] = OrderedDict()  # the least recently used first
        self._used: set[Key] = set()  # by the evaluation that goes on
        self._earlier: set[str] = set()  # the prefixes of all evaluations before
        self._prefixes: Sequence[str] = ()
        self._reused = ""  # the prefix that the evaluation that goes on has used, and will for later batches
        self._evaluation: Hashable = None

    def begin(self, evaluation: Hashable, prefixes: Sequence[str]) -> None:
        """Say which evaluation goes on, and the prefixes of its allocation, shallowest first."""
        if evaluation != self._evaluation:
            self._earlier.update(self._prefixes)
            self._evaluation, self._prefixes, self._reused = evaluation, prefixes, ""
            self._used.clear()

    def deepest(self, batch: Hashable, usable: Callable[[int], bool]) -> tuple[int, Kept] | None:
        """The deepest usable output for this batch, with its place among the prefixes."""
        found = None
        for place, prefix in enumerate(self._prefixes):
            if (prefix, batch) in self._kept and usable(place):
                self._kept.move_to_end((prefix, batch))
                found = place, self._kept[prefix, batch]
        if found is not None:
            self._reused = self._prefixes[found[0]]
            self._used.add((self._reused, batch))
        return found

    def offer(self, place: int, batch: Hashable, output: Any) -> None:
        """Keep a copy of an output of the evaluation that goes on, if there is room or it deserves some."""
        key, size = (self._prefixes[place], batch), sum(tensor.nbytes for tensor in tensors(output))
        if key in self._kept or size > self.bytes_bound:
            return
        if self._deserves_room(place):
            self._make_room(size)
        if self.bytes + size <= self.bytes_bound:
            self._kept[key] = Kept(changed(output, torch.clone), size)
            self._used.add(key)
            self.bytes += size

    def clear(self) -> None:
        """Forget all outputs."""
        self._kept.clear()
        self._used.clear()
        self._earlier.clear()
        self._reused, self.bytes = "", 0

    def _deserves_room(self, place: int) -> bool:
        came_before = [prefix in self._earlier for prefix in self._prefixes]
        return came_before[place] and not any(came_before[place + 1 :])

    def _make_room(self, size: int) -> None:
        for key in list(self._kept):
            if self.bytes + size <= self.bytes_bound:
                return
            if key not in self._used and key[0] != self._reused:
                self.bytes -= self._kept.pop(key).size


def tensors(nest: Any) -> Iterator[Tensor]:
    """All tensors in a nest of tuples, lists and dictionaries; whatever else there is is passed over."""
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, dict):
        for inner in nest.values():
            yield from tensors(inner)
    elif isinstance(nest, tuple | list):
        for inner in nest:
            yield from tensors(inner)


def changed(nest: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A nest of the same types with other tensors. Raises NestError for what is no nest of tensors and None."""
    if isinstance(nest, Tensor):
        return change(nest)
    if isinstance(nest, tuple) and hasattr(nest, "_fields"):
        return type(nest)(*(changed(inner, change) for inner in nest))
    if type(nest) in (tuple, list):
        return type(nest)(changed(inner, change) for inner in nest)
    if type(nest) is dict:
        return {name: changed(inner, change) for name, inner in nest.items()}
    if nest is None:
        return None
    raise NestError(f"{type(nest).__name__} is no nest of tensors")
