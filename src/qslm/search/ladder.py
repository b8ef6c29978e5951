"""The ladders that a search goes down: bits of the weights, and bits of the spike counts that they read."""

from collections import deque
from dataclasses import dataclass, replace
from typing import Literal

from qslm.formats import FLOAT32, Format
from qslm.search.options import Options

Ladder = Literal["weights", "activations"]


@dataclass(frozen=True)
class Place:
    """Where a part of the network stands: the place in `Options.formats`, -1 is float32, and in their activations."""

    weights: int = -1
    activations: int = 0

    def format(self, options: Options) -> Format:
        """What it is."""
        if self.weights < 0:
            return FLOAT32
        fmt = options.formats[self.weights]
        return replace(fmt, activations=options.activations[self.activations]) if options.activations else fmt

    def below(self, options: Options, ladder: Ladder) -> "Place | None":
        """One step down a ladder; None at its end. Spike counts are read by integers alone."""
        if ladder == "weights":
            return replace(self, weights=self.weights + 1) if self.weights + 1 < len(options.formats) else None
        ended = self.weights < 0 or self.activations + 1 >= len(options.activations)
        return None if ended else replace(self, activations=self.activations + 1)

    def next(self, options: Options) -> "Place | None":
        """One step down, the weights first; None at the end of both ladders."""
        return self.below(options, "weights") or self.below(options, "activations")


class Descent:
    """Steps further and further down from a place: `lower` is the next one to try, `tell` says whether to stay there.

    Weights and activations take turns; the first step of a ladder that is not kept is its last (derived).
    """

    def __init__(self, options: Options, place: Place) -> None:
        self.place = place
        self._options = options
        self._turns = deque[Ladder](["weights", "activations"])

    @property
    def lower(self) -> Place | None:
        """The next place; None at the end."""
        while self._turns:
            found = self.place.below(self._options, self._turns[0])
            if found is not None:
                return found
            self._turns.popleft()
        return None

    def tell(self, kept: bool) -> None:
        """Go to the next place, or stay and leave its ladder."""
        lower, ladder = self.lower, self._turns.popleft()
        if kept and lower is not None:
            self.place = lower
            self._turns.append(ladder)


def steps(options: Options) -> int:
    """No descent has more steps."""
    return len(options.formats) + max(len(options.activations) - 1, 0)
