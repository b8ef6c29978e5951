"""The greedy search: one matrix, one precision lower, at a time."""

from collections.abc import Generator
from dataclasses import dataclass
from math import inf, isfinite

from qslm.anatomy import Anatomy, Site
from qslm.formats import Format, data_bytes, stored_tensors
from qslm.search.options import DEFAULT_OPTIONS, Options
from qslm.search.strategy import Outcome, Proposal, Steps, Strategy
from qslm.search.uniform import Base, descend


@dataclass
class _Ladder:
    """A matrix that can still be lowered: its place in the list, and the loss that its last step added."""

    site: Site
    level: int
    added: float


class GreedySearch(Strategy):
    """Lower the matrix whose next step saves most bytes per loss, until every matrix is frozen.

    GLOBAL: as in the uniform search; the lowest precision that holds is the base.
    SENSITIVITY: each matrix alone goes one step below the base; a matrix that breaks the quality is frozen.
    GREEDY: of the matrices left, the one with the least loss per byte is lowered one step: the loss that its last
    measured step added (alone at first, then on top of all before it; none where it was negative) over the bytes
    that its next step saves. Among equals the one that saves more goes first, then the one registered first. A
    step that breaks the quality is reverted and freezes its matrix. So each step costs one evaluation, and the
    order lags behind by one: what a step adds is known once it is made.
    """

    def __init__(self, anatomy: Anatomy, options: Options = DEFAULT_OPTIONS) -> None:
        super().__init__(options.max_evaluations)
        self._anatomy, self._options, self._formats = anatomy, options, options.formats

    @property
    def maximum_evaluations(self) -> int:
        """The descent, each matrix alone, and each matrix at each precision once."""
        matrices = len(self._options.matrices(self._anatomy))
        return self._at_most(1 + len(self._formats) * (1 + matrices) + matrices)

    def steps(self) -> Steps:
        """The descent, the matrices alone, then step by step."""
        base = yield from descend(self._anatomy, self._options)
        ladders = yield from self._probed(base)
        current, loss = base.allocation, base.loss
        while ladders:
            ladder = min(ladders, key=self._rank)
            fmt = self._formats[ladder.level + 1]
            allocation = current.replace([ladder.site.name], fmt)
            outcome = yield Proposal(allocation, "greedy", f"{ladder.site.name} at {fmt}")
            if outcome.quality_ok:
                ladder.level, ladder.added = ladder.level + 1, outcome.loss - loss
                current, loss = allocation, outcome.loss
            if not outcome.quality_ok or self._is_down(ladder):
                ladders.remove(ladder)

    def _probed(self, base: Base) -> Generator[Proposal, Outcome, list[_Ladder]]:
        """The matrices that hold the quality alone at one step below the base."""
        ladders = []
        for site in self._options.matrices(self._anatomy):
            ladder = _Ladder(site, base.place.weights, 0.0)
            if self._is_down(ladder):
                break
            fmt = self._formats[base.place.weights + 1]
            allocation = base.allocation.replace([site.name], fmt)
            outcome = yield Proposal(allocation, "sensitivity", f"{site.name} alone at {fmt}")
            ladder.added = outcome.loss - base.loss
            if outcome.quality_ok:
                ladders.append(ladder)
        return ladders

    def _rank(self, ladder: _Ladder) -> tuple[float, int]:
        """(loss per byte that the next step saves, the bytes): the smallest is next."""
        above = self._bytes(ladder.site, ladder.level)
        saved = above - self._bytes(ladder.site, ladder.level + 1)
        known = saved > 0 and isfinite(ladder.added)
        return max(ladder.added, 0.0) / saved if known else inf, -saved

    def _bytes(self, site: Site, level: int) -> int:
        """Bytes of a matrix in a place of the list; -1 is float32."""
        return 4 * site.numel if level < 0 else _stored(site, self._formats[level])

    def _is_down(self, ladder: _Ladder) -> bool:
        return ladder.level + 1 == len(self._formats)


def _stored(site: Site, fmt: Format) -> int:
    return sum(map(data_bytes, stored_tensors(fmt, site.shape, site.name)))
