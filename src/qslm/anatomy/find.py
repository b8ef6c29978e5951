"""Finding the anatomy of a network."""

from torch import nn

from qslm.anatomy.blocks import locate
from qslm.anatomy.site import Anatomy, Site
from qslm.anatomy.tensors import OwnedTensor, unique_tensors
from qslm.errors import AllocationError


def find_anatomy(model: nn.Module) -> Anatomy:
    """Find the blocks, modules and sites of any network by its structure.

    The repeated sub-modules of a list (`ModuleList`, `Sequential`, `ModuleDict`, at any depth and under any
    name) that own the most parameters are the attention blocks; what is registered before them is the input
    block, what is registered after them the output block. In a network without lists, alike sub-modules of one
    parent serve, and where nothing repeats each layer is a block. This reading of the paper is derived: its
    text names the three kinds of block and not how to find them.

    A tensor that several keys share (tied weights, a module used twice) is one site, which belongs to the
    first owner. Raises AllocationError for a network without weights, with lazy weights, or with weights that
    overlap in memory without being the same tensor.
    """
    unique = unique_tensors(model)
    if not any(owners[0].kind == "parameter" for owners in unique):
        raise AllocationError(f"{type(model).__name__} has no parameters.", "Give the network that holds the weights.")
    places = locate(model, unique)
    return Anatomy(tuple(_site(owners, *place) for owners, place in zip(unique, places, strict=True)))


def _site(owners: list[OwnedTensor], block: str, module: str) -> Site:
    first = owners[0]
    binarized = all(owner.binarized for owner in owners)
    aliases = tuple(owner.name for owner in owners[1:])
    spiking = all(owner.spiking for owner in owners)
    sparse = all(owner.sparse for owner in owners)
    return Site(first.name, tuple(first.value.shape), block, module, aliases, binarized, first.kind, spiking, sparse)
