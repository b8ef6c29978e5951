"""Random search: what luck alone finds."""

from random import Random

from qslm.allocation import Allocation
from qslm.anatomy import Anatomy
from qslm.search.goal import Goal
from qslm.search.options import EVALUATIONS, Options
from qslm.search.strategy import Proposal, Steps, Strategy

DRAWS = 20  # draws for each evaluation: those that exceed the memory cost nothing but time
SPREAD = 1.0  # standard deviation of a matrix's place about the mean, in steps of the list


class RandomSearch(Strategy):
    """Random allocations around the memory budget, from a generator of its own.

    Each draws a mean place in the list of precisions, evenly from one above the highest that keeps the memory for
    the whole network down to the lowest; then the place of each matrix, normal about that mean and rounded to the
    list. What exceeds the memory, or was drawn before, is not asked.
    """

    def __init__(self, anatomy: Anatomy, options: Options, goal: Goal) -> None:
        super().__init__(options.max_evaluations or EVALUATIONS)
        self._anatomy, self._options, self._goal = anatomy, options, goal
        self._formats, self._last = options.formats, len(options.formats) - 1

    @property
    def maximum_evaluations(self) -> int:
        """The limit: a random search has no other end."""
        return self._options.max_evaluations or EVALUATIONS

    def steps(self) -> Steps:
        """The draws."""
        generator, top = Random(self._options.seed), self._top()
        for _ in range(DRAWS * self.maximum_evaluations):
            mean = generator.uniform(top, self._last)
            allocation = self._drawn(generator, mean)
            if self._goal.keeps_memory(allocation):
                yield Proposal(allocation, "random", f"about {self._formats[round(mean)]}")

    def _top(self) -> int:
        """The place above the highest precision that keeps the memory for the whole network."""
        for level, fmt in enumerate(self._formats):
            if self._goal.keeps_memory(self._options.uniform(self._anatomy, fmt)):
                return max(level - 1, 0)
        return self._last

    def _drawn(self, generator: Random, mean: float) -> Allocation:
        formats = {}
        for site in self._options.matrices(self._anatomy):
            place = round(generator.gauss(mean, SPREAD))
            formats[site.name] = self._formats[min(max(place, 0), self._last)]
        return self._options.mixed(self._anatomy, formats)
