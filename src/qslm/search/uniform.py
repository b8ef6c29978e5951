"""One precision for the whole network: the first tier of QSLM, and the simplest search."""

from collections.abc import Generator
from dataclasses import dataclass

from qslm.allocation import Allocation
from qslm.anatomy import Anatomy
from qslm.formats import FLOAT32
from qslm.search.ladder import Descent, Place, steps
from qslm.search.options import DEFAULT_OPTIONS, Options
from qslm.search.strategy import Outcome, Proposal, Steps, Strategy


@dataclass(frozen=True)
class Base:
    """The lowest uniform allocation that held the quality, its place on the ladders and its loss.

    Where none held it is float32.
    """

    allocation: Allocation
    place: Place
    loss: float


def descend(anatomy: Anatomy, options: Options, *, until_memory: bool = False) -> Generator[Proposal, Outcome, Base]:
    """Every matrix at each precision, from the highest to the first that breaks the quality; the base.

    until_memory: go on past a break while memory is unmet, as QSLM's text has it.
    """
    base, descent = None, Descent(options, Place())
    while (place := descent.lower) is not None:
        fmt = place.format(options)
        allocation = options.uniform(anatomy, fmt)
        outcome = yield Proposal(allocation, "global", f"whole network at {fmt}")
        if outcome.quality_ok:
            base = Base(allocation, place, outcome.loss)
        descent.tell(outcome.quality_ok or (until_memory and not outcome.memory_ok))
    if base is None:
        allocation = options.uniform(anatomy, FLOAT32)
        outcome = yield Proposal(allocation, "global", "whole network at float32")
        base = Base(allocation, Place(), outcome.loss)
    return base


class UniformSearch(Strategy):
    """Every precision for the whole network, from the highest to the first that breaks the quality.

    Weights and activations go down in turns, each to its own first break. Unmet memory alone does not end it. Where the
    highest breaks the quality, float32 is asked last.
    """

    def __init__(self, anatomy: Anatomy, options: Options = DEFAULT_OPTIONS) -> None:
        super().__init__(options.max_evaluations)
        self._anatomy, self._options = anatomy, options

    @property
    def maximum_evaluations(self) -> int:
        """The precisions of weights and activations, or the highest and float32."""
        return self._at_most(max(steps(self._options), 2))

    def steps(self) -> Steps:
        """The descent."""
        yield from descend(self._anatomy, self._options)
