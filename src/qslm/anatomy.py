"""The hierarchy of a network: model > block (input, attention i, output) > module > site (QSLM III-A).

Blocks are found by structure. The repeated sub-modules of a list (`ModuleList`, `Sequential`, `ModuleDict`,
at any depth and under any name) that own the most parameters are the attention blocks; what is registered
before them is the input block, what is registered after them the output block. This reading of the paper is
derived: its text names the three kinds of block and not how to find them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Literal

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from qslm.errors import AllocationError

INPUT, OUTPUT = "input", "output"
ITSELF = "."  # the module of a tensor that its block, or the network, owns directly
LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


@dataclass(frozen=True)
class Site:
    """One parameter tensor, or persistent float buffer, under its state-dict key.

    `aliases` are the other keys of the same tensor; `binarized` says that every module that owns the tensor
    reads only its sign, so that one bit a number stores it exactly.
    """

    name: str
    shape: tuple[int, ...]
    block: str
    module: str
    aliases: tuple[str, ...] = ()
    binarized: bool = False
    kind: Literal["parameter", "buffer"] = "parameter"

    @property
    def numel(self) -> int:
        """How many numbers the tensor has."""
        return prod(self.shape)

    @property
    def is_vector(self) -> bool:
        """Whether only float formats suit it: one axis longer than 1 at most, or a buffer."""
        return self.kind == "buffer" or max(self.shape, default=1) >= self.numel


@dataclass(frozen=True)
class Anatomy:
    """All sites of a network, in the order of its state dict."""

    sites: tuple[Site, ...]

    @cached_property
    def _by_name(self) -> dict[str, Site]:
        return {name: site for site in self.sites for name in (*site.aliases, site.name)}

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """The blocks that own sites: input, attention 0, attention 1, ..., output."""
        present = {site.block for site in self.sites}
        attention = sorted(present - {INPUT, OUTPUT}, key=lambda block: int(block.rpartition(" ")[2]))
        return tuple(block for block in (INPUT, *attention, OUTPUT) if block in present)

    def modules(self, block: str) -> tuple[str, ...]:
        """The modules of `block` that own sites, as they are registered."""
        return tuple(dict.fromkeys(site.module for site in self.sites_of(block)))

    def sites_of(self, block: str | None = None, module: str | None = None) -> tuple[Site, ...]:
        """The sites of one block, of one module name, of both, or all."""
        return tuple(
            site for site in self.sites if block in (None, site.block) and module in (None, site.module)
        )

    @property
    def float32_bytes(self) -> int:
        """What all sites take in float32, in bytes, tied tensors once."""
        return 4 * sum(site.numel for site in self.sites)

    def __getitem__(self, name: str) -> Site:
        if name not in self._by_name:
            raise AllocationError(f"the network has no site {name!r}", "`qslm inspect` lists the sites")
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name


@dataclass(frozen=True)
class _Tensor:
    """One key of the state dict: the module that owns it, by path, and the tensor."""

    name: str
    path: str
    owner: nn.Module
    value: torch.Tensor
    kind: Literal["parameter", "buffer"]

    @property
    def binarized(self) -> bool:
        return self.name.endswith("weight") and getattr(self.owner, "binarized", False) is True


def find_anatomy(model: nn.Module) -> Anatomy:
    """Find the blocks, modules and sites of any network by its structure.

    A tensor that several keys share (tied weights, a module used twice) is one site, which belongs to the
    first owner. Raises AllocationError for a network without weights, with lazy weights, or with weights that
    overlap in memory without being the same tensor.
    """
    unique = _unique(_tensors(model))
    if not any(owners[0].kind == "parameter" for owners in unique):
        raise AllocationError(
            f"{type(model).__name__} has no parameters", "pass the network that holds the weights"
        )
    blocks = _repeated(model, unique)
    located = _by_blocks(blocks, unique) if blocks else _by_leaves(unique)
    return Anatomy(tuple(_site(owners, *place) for owners, place in zip(unique, located, strict=True)))


def _site(owners: list[_Tensor], block: str, module: str) -> Site:
    first = owners[0]
    binarized = all(owner.binarized for owner in owners)
    aliases = tuple(owner.name for owner in owners[1:])
    return Site(first.name, tuple(first.value.shape), block, module, aliases, binarized, first.kind)


def _tensors(model: nn.Module) -> Iterator[_Tensor]:
    """Every key of the state dict that holds floats, duplicates too, in its order."""
    for path, owner in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                yield _checked(_Tensor(prefix + name, path, owner, parameter, "parameter"))
        for name, buffer in owner._buffers.items():
            persistent = name not in owner._non_persistent_buffers_set
            if buffer is not None and persistent and buffer.is_floating_point():
                yield _Tensor(prefix + name, path, owner, buffer, "buffer")


def _checked(tensor: _Tensor) -> _Tensor:
    if isinstance(tensor.value, UninitializedParameter):
        raise AllocationError(f"{tensor.name} is a lazy weight without a shape", "run the network once first")
    if not tensor.value.is_floating_point():
        raise AllocationError(
            f"{tensor.name} is a parameter of type {tensor.value.dtype}",
            "only real floating-point weights can be stored",
        )
    return tensor


def _unique(tensors: Iterator[_Tensor]) -> list[list[_Tensor]]:
    """The keys of each tensor in memory; the first key owns it."""
    groups: dict[tuple[object, ...], list[_Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(_identity(tensor.value), []).append(tensor)
    found = list(groups.values())
    _refuse_overlap(owners[0] for owners in found)
    return found


def _identity(value: torch.Tensor) -> tuple[object, ...]:
    if value.is_meta or value.numel() == 0:
        return (id(value),)
    return (value.device, value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)


def _refuse_overlap(tensors: Iterator[_Tensor]) -> None:
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
                f"{name} and {other} share memory but differ in shape or place",
                "tie them as one tensor of one shape, or copy one of them",
            )


Group = list[list[str]]  # blocks in their order, each the paths of the modules that make it up


def _repeated(model: nn.Module, unique: list[list[_Tensor]]) -> Group:
    """The attention blocks, as they are registered; empty when nothing repeats."""
    names: dict[str, set[str]] = {}
    sizes: dict[str, int] = {}
    for owners in unique:
        for tensor in owners:
            for path in _ancestors(tensor.path):
                names.setdefault(path, set()).add(tensor.name[len(path) + 1 if path else 0 :])
                sizes[path] = sizes.get(path, 0) + (tensor.value.numel() if tensor is owners[0] else 0)
    groups = list(_groups(model, names, in_lists=True)) or list(_groups(model, names, in_lists=False))
    return [block for group in _chosen(groups, sizes) for block in group] if groups else []


def _ancestors(path: str) -> Iterator[str]:
    """The path itself and every path above it, the network's own empty path last."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def _groups(model: nn.Module, names: dict[str, set[str]], *, in_lists: bool) -> Iterator[Group]:
    """Runs of alike children, of lists or else of plain modules, outermost first."""
    for path, parent in model.named_modules():
        if isinstance(parent, LISTS) == in_lists:
            prefix = f"{path}." if path else ""
            children = [
                (prefix + name, child) for name, child in parent._modules.items() if child is not None
            ]
            owning = [(name, child) for name, child in children if name in names]
            alike = _alike(owning, names)
            if len(alike) > 1 or (alike and isinstance(parent, nn.ModuleList)):
                yield _run(owning, alike, fill=in_lists)


def _alike(children: list[tuple[str, nn.Module]], names: dict[str, set[str]]) -> set[str]:
    """The largest set of children of one class that share at least half of their keys."""
    best: set[str] = set()
    for first, model in children:
        if _is_leaf(model):
            continue
        group = {
            name
            for name, child in children
            if type(child) is type(model)
            and 2 * len(names[name] & names[first]) >= len(names[name] | names[first])
        }
        best = group if len(group) > len(best) else best
        if 2 * len(best) >= len(children):
            break
    return best


def _is_leaf(module: nn.Module) -> bool:
    """A layer of PyTorch itself without layers in it: too small for a block."""
    return next(module.children(), None) is None and type(module).__module__.startswith("torch.nn")


def _run(children: list[tuple[str, nn.Module]], alike: set[str], *, fill: bool) -> Group:
    """The blocks from the first to the last alike child; a layer between two blocks joins the one before it."""
    positions = [index for index, (name, _) in enumerate(children) if name in alike]
    blocks: Group = []
    for name, child in children[positions[0] : positions[-1] + 1]:
        if name in alike or (fill and not _is_leaf(child)):
            blocks.append([name])
        elif fill:
            blocks[-1].append(name)
    return blocks


def _chosen(groups: list[Group], sizes: dict[str, int]) -> list[Group]:
    """The group that owns the most, and those beside it whose blocks are at least half as large on average.

    The second clause takes in the decoder of an encoder-decoder network.
    """

    def size(group: Group) -> int:
        return sum(sizes[path] for block in group for path in block)

    main = max(groups, key=size)
    least = size(main) / len(main) / 2
    return [
        group
        for group in groups
        if group is main
        or (_apart(group, main) and size(group) / len(group) >= least and _outermost(group, groups))
    ]


def _apart(one: Group, other: Group) -> bool:
    return not _holds(one, other) and not _holds(other, one)


def _outermost(group: Group, groups: list[Group]) -> bool:
    return not any(_holds(other, group) for other in groups if other is not group)


def _holds(outer: Group, inner: Group) -> bool:
    """Whether a block of `outer` contains the first block of `inner`."""
    above = set(_ancestors(inner[0][0]))
    return any(path in above for block in outer for path in block)


def _by_blocks(blocks: Group, unique: list[list[_Tensor]]) -> Iterator[tuple[str, str]]:
    """Block and module of every tensor, given the attention blocks."""
    number = {path: index for index, paths in enumerate(blocks) for path in paths}
    roots = {paths[0] for paths in blocks if len(paths) == 1}
    seen = False
    for owner in (owners[0] for owners in unique):
        inside = next((path for path in _ancestors(owner.path) if path in number), None)
        if inside is None:
            yield (OUTPUT if seen else INPUT), owner.path or ITSELF
        else:
            seen = True
            relative = owner.path[len(inside) + 1 :] if inside in roots else owner.path
            yield f"attention {number[inside]}", relative or ITSELF


def _by_leaves(unique: list[list[_Tensor]]) -> Iterator[tuple[str, str]]:
    """Block and module of every tensor where nothing repeats: each layer with a matrix is a block of its own.

    The first is the input, the last the output, those between count as attention blocks, as does an only one.
    A layer of vectors (a LayerNorm) belongs to the block before it, or to the first.
    """
    owners = [owners[0] for owners in unique]
    paths = list(dict.fromkeys(owner.path for owner in owners if not _is_small(owner)))
    last = len(paths) - 1
    index = 0
    for owner in owners:
        index = paths.index(owner.path) if owner.path in paths else index
        middle = f"attention {max(index - 1, 0)}"
        block = middle if last < 1 or 0 < index < last else (INPUT if index == 0 else OUTPUT)
        yield block, owner.path or ITSELF


def _is_small(tensor: _Tensor) -> bool:
    return tensor.kind == "buffer" or max(tensor.value.shape, default=1) >= tensor.value.numel()
