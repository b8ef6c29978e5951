"""Running a network from the first block whose result is not kept: what makes a prefix cache exact.

The forward methods of the attention blocks are replaced while a batch is measured. That of the last block before the
first difference gives what it gave before, those of the blocks in front of it give poison: NaN of the right shapes,
whose every descendant is known for what it is. This is right for a chain, where what comes after a block depends on
what is before it through that block's output alone, and where what is before a block does not depend on what is kept
with the blocks after it. Both are tried, once for each block, before its outputs are used:

    the network's outputs must have the same bits when everything up to the block is left out
    and when all weights after it are NaN until the block is done (an embedding that is registered last shows here).

A network or a block that fails is run whole.
"""

import hashlib
import math
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from qslm.allocation import Allocation
from qslm.anatomy import INPUT, OUTPUT, Anatomy
from qslm.digest import update_digest
from qslm.evaluation.prefix import Kept, NestError, PrefixCache, changed, tensors
from qslm.tasks.task import Losses

Forward = Callable[[], Losses]
Seen = Callable[[int, Any], None]  # is shown the output of every block that ran


class PoisonError(Exception):
    """Something depends on a block that was left out."""


class _Poison(Tensor):
    """What stands for the output of a block that was left out; PyTorch makes all that is computed from it one too."""

    def _refuse(self, *_: Any) -> Any:
        raise PoisonError

    __bool__ = __int__ = __float__ = __index__ = item = tolist = numpy = _refuse  # type: ignore[assignment]


class BlockChain:
    """The leading attention blocks of a network that are one module each, and their kept outputs.

    `usable[i]` says, once it was tried, whether the outputs of block i may be used.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, cache: PrefixCache) -> None:
        self.model, self.anatomy, self.cache = model, anatomy, cache
        self.usable: dict[int, bool] = {}
        attention = [block for block in anatomy.blocks if block not in (INPUT, OUTPUT)]
        self._names = list(takewhile(lambda block: anatomy.path(block) is not None, attention))
        self._blocks = [model.get_submodule(anatomy.path(block) or "") for block in self._names]
        if cache.bytes_bound <= 0 or any(isinstance(block, torch.jit.ScriptModule) for block in self._blocks):
            self._blocks = []
        self._poisons: dict[Hashable, list[Any]] = {}  # in the shape of what every block gives for a batch
        self._last: Hashable = None

    @property
    def finding(self) -> str:
        """What became of it, as a sentence's end for people."""
        if not self._blocks:
            return "no outputs of blocks are reused"
        tried, right = len(self.usable), sum(self.usable.values())
        return f"outputs of {right} blocks are reused" + (f", those of {tried - right} cannot be" * (right < tried))

    def run(self, allocation: Allocation, batch: tuple[str, int], forward: Forward) -> tuple[Losses, int]:
        """What `forward` gives, which measures the batch with the network as it is rounded now, and its work.

        `batch` names it: split and index. Work is tokens times blocks of the anatomy that were forwarded.
        """
        blocks = len(self.anatomy.blocks)
        if not self._blocks:
            losses = forward()
            return losses, blocks * losses.tokens
        before, self._last = self._last, batch
        self.cache.begin((allocation.key, batch[0]), self._prefixes(allocation))
        # What a network remembers of the same batch would hide that it depends on a block that is left out.
        found = self.cache.deepest(batch, lambda place: self.usable.get(place, before != batch))
        if found is None:
            return (losses := self._whole(batch, forward)), blocks * losses.tokens
        place, kept = found
        ran = blocks - place - 1 if place in self.usable else 2 * blocks - place - 1
        reused = self._reused(place, kept, batch, forward)
        if reused is not None:
            return reused, ran * reused.tokens
        self.usable[place] = False
        self.cache.clear()  # the blocks after it may have given what is wrong
        losses = self._whole(batch, forward)
        return losses, (ran + blocks) * losses.tokens

    def forget(self) -> None:
        """Forget all outputs: the weights that they came from have changed."""
        self.cache.clear()

    def _prefixes(self, allocation: Allocation) -> list[str]:
        """For every block of the chain, a digest of all formats up to and with it."""
        digest, found = hashlib.sha256(), []
        chosen: dict[str, list[str]] = {}
        for site, fmt, quantizer in allocation.choices():
            chosen.setdefault(site.block, []).append(f"{site.name} {fmt} {quantizer}")
        for name in (INPUT, *self._names):
            for choice in chosen.get(name, ()):
                digest.update(f"{choice}\n".encode())
            found.append(digest.hexdigest())
        return found[1:]

    def _whole(self, batch: Hashable, forward: Forward) -> Losses:
        """Run everything, and offer what the blocks give to the cache."""
        poisons: list[Any] = []

        def seen(place: int, output: Any) -> None:
            with suppress(NestError):
                poisons.append(changed(output, _poison))
                if self.usable.get(place, True):
                    self.cache.offer(place, batch, output)

        with self._standing_in(self._running(seen)) as called:
            losses = forward()
        self._poisons[batch] = poisons
        if not self._in_order(called) or len(poisons) < len(called):
            self._blocks = []
            self.cache.clear()
        return losses

    def _reused(self, place: int, kept: Kept, batch: Hashable, forward: Forward) -> Losses | None:
        """The losses with everything up to a block left out; None where that is found to be wrong."""
        if place not in self.usable:
            return self._tried(place, kept, batch, forward)
        try:
            with self._answers(digests=False):
                return self._skipping(place, kept, batch, forward)
        except PoisonError:
            return None

    def _tried(self, place: int, kept: Kept, batch: Hashable, forward: Forward) -> Losses | None:
        """The losses of a run with everything up to a block left out and of a whole one, if they are the same."""
        try:
            with self._answers() as skipped:
                reused = self._skipping(place, kept, batch, forward)
            with self._answers() as whole, self._hidden(place) as show:
                running = self._running(lambda index, _: show() if index == place else None)
                with self._standing_in(running):
                    losses = forward()
        except Exception:  # whatever it was: a whole run meets it again if it is not of our making
            return None
        right = skipped == whole != [] and reused.values.tobytes() == losses.values.tobytes()
        if right:
            self.usable[place] = True
        return losses if right else None

    def _skipping(self, place: int, kept: Kept, batch: Hashable, forward: Forward) -> Losses:
        """Run from the block after `place`. Raises PoisonError."""
        running = self._running(lambda index, output: self.cache.offer(index, batch, output))

        def stand_in(index: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if index < place:
                return self._poisons[batch][index]
            if index == place:
                return changed(kept.output, torch.clone)
            return running(index, original, *args, **kwargs)

        with self._standing_in(stand_in) as called:
            losses = forward()
        if not self._in_order(called):
            raise PoisonError
        return losses

    def _in_order(self, called: list[int]) -> bool:
        """Whether every block was called once, one after the other."""
        return called == list(range(len(self._blocks)))

    @staticmethod
    def _running(seen: Seen) -> Callable[..., Any]:
        def run(index: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            _refuse_poison((args, kwargs))
            output = original(*args, **kwargs)
            seen(index, output)
            return output

        return run

    @contextmanager
    def _standing_in(self, stand_in: Callable[..., Any]) -> Iterator[list[int]]:
        """Have `stand_in(index, forward, ...)` called for every block; yields the blocks as they are called."""
        called: list[int] = []

        def replacement(index: int, original: Callable[..., Any]) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                called.append(index)
                return stand_in(index, original, *args, **kwargs)

            return forward

        own = [vars(block).get("forward") for block in self._blocks]
        for index, block in enumerate(self._blocks):
            vars(block)["forward"] = replacement(index, block.forward)
        try:
            yield called
        finally:
            for block, before in zip(self._blocks, own, strict=True):
                del vars(block)["forward"]
                if before is not None:
                    vars(block)["forward"] = before

    @contextmanager
    def _answers(self, digests: bool = True) -> Iterator[list[str]]:
        """Yields digests of what the network answers, which must not be poison."""
        found: list[str] = []

        def look(module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
            _refuse_poison(outputs)
            if digests:
                digest = hashlib.sha256()
                update_digest(digest, tensors(outputs))
                found.append(digest.hexdigest())

        handle = self.model.register_forward_hook(look)
        try:
            yield found
        finally:
            handle.remove()

    @contextmanager
    def _hidden(self, place: int) -> Iterator[Callable[[], None]]:
        """Make NaN of all weights that the prefix of a block leaves out; what is yielded shows them again."""
        shared = (INPUT, *self._names[: place + 1])
        names = [name for site in self.anatomy.sites if site.block not in shared for name in (site.name, *site.aliases)]
        hidden = [(tensor := _tensor(self.model, name), tensor.data) for name in names]

        def show() -> None:
            for tensor, data in hidden:
                tensor.data = data

        for tensor, data in hidden:
            tensor.data = torch.full((), math.nan, dtype=data.dtype, device=data.device).expand(data.shape)
        try:
            yield show
        finally:
            show()


def _tensor(model: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(owner), leaf)
    return found


def _poison(tensor: Tensor) -> Tensor:
    """NaN (of types without one, 0) in the shape and type of a tensor; it takes the memory of one number."""
    worst = math.nan if tensor.is_floating_point() or tensor.is_complex() else 0
    poison = torch.full((), worst, dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
    return poison.as_subclass(_Poison)


def _refuse_poison(nest: Any) -> None:
    if any(isinstance(tensor, _Poison) for tensor in tensors(nest)):
        raise PoisonError
