"""The tiered search of QSLM (III-B, algorithms 1 and 2): global, block and module tier over a precision list.

The algorithms' text could not be had; this is a reconstruction from the prose. Derived is: the search goes
down while only memory is unmet, what is reverted is what breaks quality, the order of the blocks comes from one
probe each, and nothing is evaluated that an earlier outcome has already decided (unless `literal`).
"""

from collections.abc import Generator
from dataclasses import dataclass
from math import inf, isnan

from qslm.allocation import Allocation
from qslm.anatomy import INPUT, OUTPUT, Anatomy
from qslm.search.ladder import Descent, Place, steps
from qslm.search.options import DEFAULT_OPTIONS, Options
from qslm.search.strategy import Outcome, Proposal, Steps, Strategy
from qslm.search.uniform import Base, descend


@dataclass(frozen=True)
class _Part:
    """A block or a module: the sites that a precision is given to, all at once."""

    name: str
    block: str
    sites: tuple[str, ...]
    numel: int


class TieredSearch(Strategy):
    """Lower the whole network, then block by block, then module by module, until a step breaks the quality.

    GLOBAL: every matrix gets precision p, from the highest of `precisions` (bits) to the lowest; the search
    goes down while the quality holds, also where memory alone is unmet, and stops at the first p that breaks
    it. The last p that held is the base; where none held the base is float32, above the list.
    SENSITIVITY (order="sensitivity"): each block alone goes one precision below the base; the blocks are then
    taken in the order of the loss, the smallest first. A block that breaks the quality here is left out of
    the block tier, since the tier would only try it on top of other losses.
    BLOCK: each block in turn is lowered step by step until a step breaks the quality; that step is reverted.
    MODULE: the same for the modules of the attention blocks, the largest of a block first (order="network":
    as they are registered). A block with one module has had its turn.

    Where layers read spike counts, the bits of these go down in turns with the bits of the weights, each until its own
    first break (derived).

    Vectors keep the options' float format; a binarized embedding keeps `sign` when their `signs` is true.

    literal: search as the paper's prose says, and save nothing but the second evaluation of an identical
    allocation. The global tier goes on while memory is unmet or the quality holds, so past a break too where the
    file is still too large; no block is left out of the block tier; and the module tier takes the attention blocks
    and their modules as they stand, those of one module as well.
    """

    def __init__(self, anatomy: Anatomy, options: Options = DEFAULT_OPTIONS, *, literal: bool = False) -> None:
        super().__init__(options.max_evaluations)
        self._anatomy, self._options, self._literal = anatomy, options, literal
        self._matrices = set(options.matrices(anatomy))
        self._blocks = tuple(part for part in map(self._block, anatomy.blocks) if part.sites)

    @property
    def maximum_evaluations(self) -> int:
        """A bound that holds whatever is told: every tier walks the whole list for every part."""
        probes = len(self._blocks) if self._options.order == "sensitivity" else 0
        modules = sum(len(self._modules(block)) for block in self._blocks)
        return self._at_most(1 + steps(self._options) * (1 + len(self._blocks) + modules) + probes)

    def steps(self) -> Steps:
        """The tiers one after the other."""
        base = yield from descend(self._anatomy, self._options, until_memory=self._literal)
        if (below := base.place.next(self._options)) is None:
            return
        order = yield from self._ordered(base, below)
        current, places = base.allocation, {part.block: base.place for part in self._blocks}
        for part in order:
            current, places[part.block] = yield from self._lowered(current, part, base.place, "block")
        for part in self._module_turns(order):
            current, _ = yield from self._lowered(current, part, places[part.block], "module")

    def _ordered(self, base: Base, below: Place) -> Generator[Proposal, Outcome, list[_Part]]:
        """The blocks in the order in which the block tier takes them."""
        if self._options.order == "network":
            return list(self._blocks)
        fmt = below.format(self._options)
        probed: list[tuple[float, int]] = []
        for index, part in enumerate(self._blocks):
            allocation = base.allocation.replace(part.sites, fmt)
            outcome = yield Proposal(allocation, "sensitivity", f"{part.name} alone at {fmt}")
            if outcome.quality_ok or self._literal:
                probed.append((inf if isnan(outcome.loss) else outcome.loss, index))
        return [self._blocks[index] for _, index in sorted(probed)]

    def _lowered(
        self, base: Allocation, part: _Part, place: Place, tier: str
    ) -> Generator[Proposal, Outcome, tuple[Allocation, Place]]:
        """`base` with `part`, now at `place`, as low as the quality holds, and that place."""
        descent = Descent(self._options, place)
        while (lower := descent.lower) is not None:
            fmt = lower.format(self._options)
            allocation = base.replace(part.sites, fmt)
            outcome = yield Proposal(allocation, tier, f"{part.name} at {fmt}")
            if outcome.quality_ok:
                base = allocation
            descent.tell(outcome.quality_ok)
        return base, descent.place

    def _block(self, block: str) -> _Part:
        return self._part(block, block, None)

    def _part(self, name: str, block: str, module: str | None) -> _Part:
        """The matrices of a block or module, without what is kept as signs."""
        sites = [site for site in self._anatomy.sites_of(block, module) if site in self._matrices]
        return _Part(name, block, tuple(site.name for site in sites), sum(site.numel for site in sites))

    def _modules(self, block: _Part) -> list[_Part]:
        """The modules of an attention block with something to lower; a block's only one counts when `literal`."""
        if block.block in (INPUT, OUTPUT):
            return []
        modules = [
            self._part(f"{block.name} {module}", block.block, module) for module in self._anatomy.modules(block.block)
        ]
        modules = [part for part in modules if part.sites]
        return modules if len(modules) > 1 or self._literal else []

    def _module_turns(self, order: list[_Part]) -> list[_Part]:
        if self._literal:
            return [part for block in self._blocks for part in self._modules(block)]
        left_out = [part for part in self._blocks if part not in order]
        turns = [self._modules(block) for block in (*order, *left_out)]
        if self._options.order == "sensitivity":
            turns = [sorted(modules, key=lambda part: -part.numel) for modules in turns]
        return [part for modules in turns for part in modules]
