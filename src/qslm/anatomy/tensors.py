"""Which tensors a network stores: its state dict, every tensor in memory once."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from qslm.errors import AllocationError


@dataclass(frozen=True)
class OwnedTensor:
    """One key of the state dict: the module that owns it, by path, and the tensor."""

    name: str
    path: str
    owner: nn.Module
    value: torch.Tensor
    kind: Literal["parameter", "buffer"]

    @property
    def binarized(self) -> bool:
        """Whether the owner reads only the signs of it."""
        return self.name.endswith("weight") and getattr(self.owner, "binarized", False) is True

    @property
    def sparse(self) -> bool:
        """Whether most of what the owner multiplies with it is zero."""
        return self.name.endswith("weight") and getattr(self.owner, "sparse", False) is True

    @property
    def spiking(self) -> bool:
        """Whether the owner can multiply it with spike counts."""
        return self.name.endswith("weight") and getattr(self.owner, "spiking", False) is True


def _owned(model: nn.Module) -> Iterator[OwnedTensor]:
    """Every key of the state dict that holds floats, duplicates too, in its order."""
    for path, owner in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                yield _checked(OwnedTensor(prefix + name, path, owner, parameter, "parameter"))
        for name, buffer in owner._buffers.items():
            persistent = name not in owner._non_persistent_buffers_set
            if buffer is not None and persistent and buffer.is_floating_point():
                yield OwnedTensor(prefix + name, path, owner, buffer, "buffer")


def _checked(tensor: OwnedTensor) -> OwnedTensor:
    if isinstance(tensor.value, UninitializedParameter):
        raise AllocationError(f"{tensor.name} is a lazy weight without a shape.", "Run the network once first.")
    if not tensor.value.is_floating_point():
        raise AllocationError(
            f"{tensor.name} is a parameter of type {tensor.value.dtype}; only real floating-point ones are stored.",
            "Convert it to float32.",
        )
    return tensor


def unique_tensors(model: nn.Module) -> list[list[OwnedTensor]]:
    """The keys of each tensor in memory; the first key owns it. Raises AllocationError."""
    groups: dict[tuple[object, ...], list[OwnedTensor]] = {}
    for tensor in _owned(model):
        groups.setdefault(_identity(tensor.value), []).append(tensor)
    found = list(groups.values())
    _refuse_overlap(owners[0] for owners in found)
    return found


def _identity(value: torch.Tensor) -> tuple[object, ...]:
    if value.is_meta or value.numel() == 0:
        return (id(value),)
    return (value.device, value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)


def _refuse_overlap(tensors: Iterator[OwnedTensor]) -> None:
    spans = []
    for tensor in tensors:
        value = tensor.value
        if not value.is_meta and value.numel():
            last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
            start = value.data_ptr()
            spans.append((str(value.device), start, start + (last + 1) * value.element_size(), tensor.name))
    spans.sort()
    for (device, _, end, name), (other_device, start, _, other) in pairwise(spans):
        if device == other_device and start < end:
            raise AllocationError(
                f"{name} and {other} share memory but differ in shape or place.",
                "Tie them as one tensor of one shape, or copy one of them.",
            )
