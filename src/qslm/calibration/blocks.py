"""The attention blocks of a network as a chain: each is called once, with the stream that the one before it gives.

So a network is worked on block by block, with the streams in front of one block in memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from qslm.anatomy import INPUT, OUTPUT, Anatomy
from qslm.calibration.calls import Call, first_call
from qslm.errors import StudyError


@dataclass(frozen=True, eq=False)
class Block:
    """One block: a stream (rows, tokens, width) in, a stream out. What else it is called with is every block's."""

    name: str
    path: str
    module: nn.Module

    def run(self, call: Call, weights: Mapping[str, Tensor] | None = None) -> Call:
        """What the next block is called with; `weights` by their names inside the block in the place of its own."""
        output = functional_call(self.module, dict(weights or {}), call.arguments, call.keywords)
        return call.onward(_stream_of(output))


def chain(model: nn.Module, anatomy: Anatomy, call: Call) -> list[Block]:
    """The attention blocks in their order, found by a call of the network.

    Raises StudyError unless each is called once with the stream of the one before it, and all with the same else.
    """
    names = [name for name in anatomy.blocks if name not in (INPUT, OUTPUT)]
    blocks = [Block(name, path, model.get_submodule(path)) for name in names if (path := anatomy.path(name))]
    if not blocks or len(blocks) < len(names):
        raise refused(model, "its attention blocks are no modules")
    seen: list[tuple[nn.Module, Call, Any]] = []

    def look(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        seen.append((module, Call(arguments, keywords), output))

    hooks = [block.module.register_forward_hook(look, with_kwargs=True) for block in blocks]
    try:
        model(*call.arguments, **call.keywords)
    finally:
        for hook in hooks:
            hook.remove()
    if [module for module, _, _ in seen] != [block.module for block in blocks]:
        raise refused(model, "its attention blocks are not called one after the other")
    _check(model, blocks, [call for _, call, _ in seen], [output for _, _, output in seen])
    return blocks


def _check(model: nn.Module, blocks: Sequence[Block], calls: Sequence[Call], outputs: Sequence[Any]) -> None:
    """Raise StudyError unless a block's stream is what the one before it gave, and the rest what the first had."""
    before: Tensor | None = None
    for block, call, output in zip(blocks, calls, outputs, strict=True):
        if not call.arguments or not isinstance(call.arguments[0], Tensor):
            raise refused(model, f"{block.path} is called without a stream in the first place")
        if before is not None and not torch.equal(call.stream, before):
            raise refused(model, f"{block.path} is called with something else than the block before it gives")
        if not _same((call.arguments[1:], call.keywords), (calls[0].arguments[1:], calls[0].keywords)):
            raise refused(model, f"{block.path} is called with something else than {blocks[0].path} beside the stream")
        before = _stream_of(output)
        if not isinstance(before, Tensor) or before.shape != call.stream.shape:
            raise refused(model, f"{block.path} does not give a stream of the shape that it is given")


def _same(one: Any, other: Any) -> bool:
    """Whether two arguments are the same to the bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())
    return one is other or (type(one) is type(other) and not isinstance(one, Tensor) and bool(one == other))


def streams(model: nn.Module, first: Block, calls: Sequence[Call]) -> Iterator[Call]:
    """What the first block is called with in calls of the network."""
    for call in calls:
        found = first_call(first.module, lambda call=call: model(*call.arguments, **call.keywords))  # type: ignore[misc]
        if found is not None:
            yield replace(found, text=call.text)


def refused(model: nn.Module, why: str) -> StudyError:
    """The error for a network that cannot be worked on block by block."""
    return StudyError(
        f"{type(model).__name__} cannot be worked on block by block: {why}.",
        "Reconstruction and spiking layers need a chain of attention blocks; a search without --reconstruct does not.",
    )


def _stream_of(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) and output else output
