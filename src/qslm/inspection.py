"""What a network is made of, and what its file would take at every bit width."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from qslm.allocation import Allocation
from qslm.anatomy import Anatomy, find_anatomy
from qslm.formats import FLOAT32, INTEGER_BITS, Format

WIDTHS = (32, *sorted(INTEGER_BITS, reverse=True))
TEMPLATE = Format("integer", 8)


@dataclass(frozen=True)
class Width:
    """A network with every matrix at one bit width; 32 is float32.

    `paper_bytes` is by the paper's convention (`Allocation.paper_bytes`), with a binarized embedding as any matrix.
    """

    bits: int
    file_bytes: int
    tensor_bytes: int
    scale_bytes: int
    saving: float  # share of the float32 tensor bytes
    paper_bytes: int
    paper_saving: float


@dataclass(frozen=True)
class Inspection:
    """The anatomy of a network and its bytes at every width."""

    anatomy: Anatomy
    widths: tuple[Width, ...]

    def to_dict(self) -> dict[str, Any]:
        """The tree of blocks, modules and sites with parameters and shares, and the widths, as JSON values."""
        total = sum(site.numel for site in self.anatomy.sites)
        return {
            "parameters": total,
            "float32_bytes": self.anatomy.float32_bytes,
            "blocks": [_block(self.anatomy, block, total) for block in self.anatomy.blocks],
            "widths": [vars(width) for width in self.widths],
        }


def inspect(
    model: nn.Module, *, template: Format = TEMPLATE, vectors: Format = FLOAT32, signs: bool = True
) -> Inspection:
    """Find the anatomy of a network and count its bytes at every width.

    `template` says how integers are stored, a width replaces its bits; `vectors` is the float format of
    one-dimensional parameters; `signs` stores a binarized embedding as signs. Raises AllocationError.
    """
    anatomy = find_anatomy(model)
    return Inspection(anatomy, tuple(_width(anatomy, bits, template, vectors, signs) for bits in WIDTHS))


def _width(anatomy: Anatomy, bits: int, template: Format, vectors: Format, signs: bool) -> Width:
    allocation = plain = Allocation.float32(anatomy)
    if bits < 32:
        narrow = replace(template, bits=bits)
        allocation = Allocation.uniform(anatomy, narrow, vectors=vectors, signs=signs)
        plain = Allocation.uniform(anatomy, narrow, signs=False)
    footprint = allocation.footprint()
    return Width(
        bits,
        footprint.file,
        footprint.tensors,
        footprint.scales,
        1 - footprint.tensors / max(anatomy.float32_bytes, 1),
        plain.paper_bytes(),
        plain.paper_saving(),
    )


def _block(anatomy: Anatomy, block: str, total: int) -> dict[str, Any]:
    count = sum(site.numel for site in anatomy.sites_of(block))
    modules = [_module(anatomy, block, module, total) for module in anatomy.modules(block)]
    return {"block": block, "parameters": count, "share": count / max(total, 1), "modules": modules}


def _module(anatomy: Anatomy, block: str, module: str, total: int) -> dict[str, Any]:
    sites = anatomy.sites_of(block, module)
    count = sum(site.numel for site in sites)
    described = [
        {
            "site": site.name,
            "shape": list(site.shape),
            "parameters": site.numel,
            "kind": site.kind,
            "binarized": site.binarized,
            "aliases": list(site.aliases),
        }
        for site in sites
    ]
    return {"module": module, "parameters": count, "share": count / max(total, 1), "sites": described}
