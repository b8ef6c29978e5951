"""Which parts of a network are rounded, one at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from qslm.anatomy import INPUT, ITSELF, OUTPUT, Anatomy, Site
from qslm.errors import AllocationError
from qslm.search import Options

Level = Literal["block", "module", "site", "all"]

LEVELS = ("block", "module", "site", "all")
ATTENTION = "attention"  # the level of all attention blocks together


@dataclass(frozen=True)
class Part:
    """A part of a network: `level` is attention (all attention blocks together), block, module or site.

    `sites` are the names of its matrices, which all get one width; `block` and `module` are "" where it spans several.
    """

    level: str
    name: str
    block: str
    module: str
    sites: tuple[str, ...]


def find_parts(anatomy: Anatomy, level: Level, options: Options) -> list[Part]:
    """The parts of a level, or of all, in the order of the network; without what has no matrix to round.

    All attention blocks together come first with the levels block and all. Vectors keep their format, a binarized
    embedding is left out where the options store it as signs. Raises AllocationError for an unknown level and for a
    network without a matrix.
    """
    if level not in LEVELS:
        raise AllocationError(f"There is no level {level!r}.", f"Choose one of {', '.join(LEVELS)}.")
    parts = [part for part in _parts(anatomy, options) if part.sites and level in (part.level, "all", _seen_with(part))]
    if not parts:
        raise AllocationError("The network has no matrix to round.", "What is stored as signs is exact: --no-signs.")
    return parts


def _seen_with(part: Part) -> str:
    return "block" if part.level == ATTENTION else part.level


def _parts(anatomy: Anatomy, options: Options) -> Iterator[Part]:
    def matrices(sites: Sequence[Site]) -> tuple[str, ...]:
        rounded = [site for site in sites if not site.is_vector and not (options.signs and site.binarized)]
        return tuple(site.name for site in rounded)

    attention = [block for block in anatomy.blocks if block not in (INPUT, OUTPUT)]
    together = [site for block in attention for site in anatomy.sites_of(block)]
    yield Part(ATTENTION, "all attention blocks", "", "", matrices(together))
    for block in anatomy.blocks:
        yield Part("block", block, block, "", matrices(anatomy.sites_of(block)))
        for module in anatomy.modules(block):
            sites = anatomy.sites_of(block, module)
            name = block if module == ITSELF else f"{block} {module}"
            yield Part("module", name, block, module, matrices(sites))
            for site in sites:
                yield Part("site", site.name, block, module, matrices((site,)))
