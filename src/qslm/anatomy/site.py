"""A network's hierarchy as values: sites, and the anatomy that holds them."""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

from qslm.errors import AllocationError

INPUT, OUTPUT = "input", "output"
ITSELF = "."  # the module of a tensor that its block, or the network, owns directly


@dataclass(frozen=True)
class Site:
    """One parameter tensor, or persistent float buffer, under its state-dict key.

    `aliases` are the other keys of the same tensor; `binarized` says that every module that owns the tensor
    reads only its sign, so that one bit a number stores it exactly; `spiking` that they may read spike counts;
    `sparse` that most of their inputs are zero, so that it is stored column after column.
    """

    name: str
    shape: tuple[int, ...]
    block: str
    module: str
    aliases: tuple[str, ...] = ()
    binarized: bool = False
    kind: Literal["parameter", "buffer"] = "parameter"
    spiking: bool = False
    sparse: bool = False

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

    def path(self, block: str) -> str | None:
        """The path of the one module that owns all sites of `block`; None where several share it."""
        found = {_above(site) for site in self.sites if site.block == block}
        return found.pop() if len(found) == 1 else None

    def sites_of(self, block: str | None = None, module: str | None = None) -> tuple[Site, ...]:
        """The sites of one block, of one module name, of both, or all."""
        return tuple(site for site in self.sites if block in (None, site.block) and module in (None, site.module))

    @property
    def float32_bytes(self) -> int:
        """What all sites take in float32, in bytes, tied tensors once."""
        return 4 * sum(site.numel for site in self.sites)

    def __getitem__(self, name: str) -> Site:
        if name not in self._by_name:
            raise AllocationError(f"The network has no site {name!r}.", "Take one that `qslm inspect` lists.")
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name


def _above(site: Site) -> str | None:
    """The path of the module that a site's own module is named from; None where that is the network."""
    owner = site.name.rpartition(".")[0]
    if site.module == ITSELF:
        return owner or None
    return owner.removesuffix(f".{site.module}") if owner.endswith(f".{site.module}") else None
