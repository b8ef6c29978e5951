"""Random search: what luck alone finds."""

from collections.abc import Iterator
from random import Random

from qslm.allocation import Allocation
from qslm.anatomy import Anatomy
from qslm.search.goal import Goal
from qslm.search.options import EVALUATIONS, Options
from qslm.search.strategy import Proposal, Steps, Strategy

DRAWS = 20  # draws for each evaluation: those that exceed the memory cost nothing but time
SPREAD = 1.0  # standard deviation of a matrix's place about the mean, in steps of the list


def draw_allocations(anatomy: Anatomy, options: Options, goal: Goal, draws: int) -> Iterator[Allocation]:
    """Random allocations around the memory budget, by the seed of the options.

    Each draws a mean place in the list of precisions, evenly from one above the highest that keeps the memory for
    the whole network down to the lowest; then the place of each matrix, normal about that mean and rounded to the
    list. What exceeds the memory is drawn but not given.
    """
    generator, formats, matrices = Random(options.seed), options.formats, options.matrices(anatomy)
    top, last = _top(anatomy, options, goal), len(formats) - 1
    for _ in range(draws):
        mean = generator.uniform(top, last)
        places = [round(generator.gauss(mean, SPREAD)) for _ in matrices]
        drawn = {site.name: formats[min(max(at, 0), last)] for site, at in zip(matrices, places, strict=True)}
        allocation = options.mixed(anatomy, drawn)
        if goal.keeps_memory(allocation):
            yield allocation


def _top(anatomy: Anatomy, options: Options, goal: Goal) -> int:
    """The place above the highest precision that keeps the memory for the whole network."""
    kept = (level for level, fmt in enumerate(options.formats) if goal.keeps_memory(options.uniform(anatomy, fmt)))
    return max(next(kept, len(options.formats) - 1) - 1, 0)


class RandomSearch(Strategy):
    """Random allocations around the memory budget, as `draw_allocations` draws them, each asked once."""

    def __init__(self, anatomy: Anatomy, options: Options, goal: Goal) -> None:
        super().__init__(options.limit or EVALUATIONS)
        self._anatomy, self._options, self._goal = anatomy, options, goal

    @property
    def maximum_evaluations(self) -> int:
        """The limit: a random search has no other end."""
        return self._options.limit or EVALUATIONS

    def steps(self) -> Steps:
        """The draws."""
        draws = DRAWS * self.maximum_evaluations
        for number, allocation in enumerate(draw_allocations(self._anatomy, self._options, self._goal, draws)):
            yield Proposal(allocation, "random", f"draw {number}")
