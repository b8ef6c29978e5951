"""What a network is made of, and what its file would take at every bit width."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from qslm.allocation import Allocation
from qslm.anatomy import Anatomy, Site
from qslm.anatomy.find import find_anatomy
from qslm.formats import FLOAT32, INTEGER_BITS, Format, data_bytes, stored_tensors
from qslm.search import TEMPLATE

WIDTHS = (32, *sorted(INTEGER_BITS, reverse=True))


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
    """The anatomy of a network, and its bytes at every width: of the file, and of each site by width and name."""

    anatomy: Anatomy
    widths: tuple[Width, ...]
    site_bytes: Mapping[int, Mapping[str, int]] = field(repr=False)  # scales and zero points included

    def size(self, sites: Sequence[Site], bits: int) -> int:
        """Bytes of these sites with every matrix at one width."""
        return sum(self.site_bytes[bits][site.name] for site in sites)

    def share(self, sites: Sequence[Site]) -> float:
        """Share of the network's parameters that these sites hold."""
        return sum(site.numel for site in sites) / max(self.anatomy.float32_bytes // 4, 1)

    def to_dict(self) -> dict[str, Any]:
        """The tree of blocks, modules and sites, each with parameters, share and bytes, and the widths, for JSON."""
        return {
            "parameters": self.anatomy.float32_bytes // 4,
            "float32_bytes": self.anatomy.float32_bytes,
            "blocks": [self._block(block) for block in self.anatomy.blocks],
            "widths": [vars(width) for width in self.widths],
        }

    def _block(self, block: str) -> dict[str, Any]:
        modules = [self._module(block, module) for module in self.anatomy.modules(block)]
        return {"block": block, **self._counts(self.anatomy.sites_of(block)), "modules": modules}

    def _module(self, block: str, module: str) -> dict[str, Any]:
        sites = self.anatomy.sites_of(block, module)
        return {"module": module, **self._counts(sites), "sites": [self._site(site) for site in sites]}

    def _site(self, site: Site) -> dict[str, Any]:
        return {
            "site": site.name,
            "shape": list(site.shape),
            **self._counts((site,)),
            "kind": site.kind,
            "binarized": site.binarized,
            "aliases": list(site.aliases),
        }

    def _counts(self, sites: Sequence[Site]) -> dict[str, Any]:
        return {
            "parameters": sum(site.numel for site in sites),
            "share": self.share(sites),
            "bytes": {str(width.bits): self.size(sites, width.bits) for width in self.widths},
        }


def inspect(
    model: nn.Module | Anatomy, *, template: Format = TEMPLATE, vectors: Format = FLOAT32, signs: bool = True
) -> Inspection:
    """Find the anatomy of a network, or take it, and count its bytes at every width.

    `template` says how integers are stored, a width replaces its bits; `vectors` is the float format of
    one-dimensional parameters; `signs` stores a binarized embedding as signs. Raises AllocationError.
    """
    anatomy = model if isinstance(model, Anatomy) else find_anatomy(model)
    allocations = {32: Allocation.float32(anatomy)}
    for bits in WIDTHS[1:]:
        narrow = replace(template, bits=bits)
        allocations[bits] = Allocation.uniform(anatomy, narrow, vectors=vectors, signs=signs)
    widths = tuple(_width(allocation, bits) for bits, allocation in allocations.items())
    return Inspection(anatomy, widths, {bits: _sizes(allocation) for bits, allocation in allocations.items()})


def _width(allocation: Allocation, bits: int) -> Width:
    footprint, anatomy = allocation.footprint(), allocation.anatomy
    plain = Allocation.uniform(anatomy, replace(TEMPLATE, bits=bits), signs=False) if bits < 32 else allocation
    return Width(
        bits,
        footprint.file,
        footprint.tensors,
        footprint.scales,
        1 - footprint.tensors / max(anatomy.float32_bytes, 1),
        plain.paper_bytes(),
        plain.paper_saving(),
    )


def _sizes(allocation: Allocation) -> dict[str, int]:
    """Bytes of each site by its name."""
    return {
        site.name: sum(map(data_bytes, stored_tensors(format, site.shape, site.name)))
        for site, format in allocation.items()
    }
