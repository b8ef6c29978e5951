"""Which parts of a network are its blocks, by structure."""

from collections.abc import Iterator

from torch import nn

from qslm.anatomy.site import INPUT, ITSELF, OUTPUT
from qslm.anatomy.tensors import OwnedTensor

LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)

Group = list[list[str]]  # blocks in their order, each the paths of the modules that make it up


def locate(model: nn.Module, unique: list[list[OwnedTensor]]) -> Iterator[tuple[str, str]]:
    """Block and module of every tensor."""
    blocks = _repeated(model, unique)
    return _by_blocks(blocks, unique) if blocks else _by_leaves(unique)


def _repeated(model: nn.Module, unique: list[list[OwnedTensor]]) -> Group:
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
            children = [(prefix + name, child) for name, child in parent._modules.items() if child is not None]
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
            if type(child) is type(model) and 2 * len(names[name] & names[first]) >= len(names[name] | names[first])
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
        if group is main or (_apart(group, main) and size(group) / len(group) >= least and _outermost(group, groups))
    ]


def _apart(one: Group, other: Group) -> bool:
    return not _holds(one, other) and not _holds(other, one)


def _outermost(group: Group, groups: list[Group]) -> bool:
    return not any(_holds(other, group) for other in groups if other is not group)


def _holds(outer: Group, inner: Group) -> bool:
    """Whether a block of `outer` contains the first block of `inner`."""
    above = set(_ancestors(inner[0][0]))
    return any(path in above for block in outer for path in block)


def _by_blocks(blocks: Group, unique: list[list[OwnedTensor]]) -> Iterator[tuple[str, str]]:
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


def _by_leaves(unique: list[list[OwnedTensor]]) -> Iterator[tuple[str, str]]:
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


def _is_small(tensor: OwnedTensor) -> bool:
    return tensor.kind == "buffer" or max(tensor.value.shape, default=1) >= tensor.value.numel()
