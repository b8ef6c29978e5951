"""Allocation as optimization: the least expected loss at every size, verified where it matters.

The expected losses (`Costs`) make a multiple-choice knapsack, solved exactly for the whole front. A few points of the
front are then evaluated; what they lose corrects what the others are expected to lose, until the preferred point is
found. At last single sites are exchanged for what the sum over sites cannot know, their interactions.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from qslm.allocation import Allocation
from qslm.anatomy import Anatomy
from qslm.formats import FLOAT32, Format, data_bytes, stored_tensors
from qslm.search.costs import Costs
from qslm.search.expected import ExpectedFront
from qslm.search.front import Item, pareto_front
from qslm.search.goal import Goal
from qslm.search.options import Options
from qslm.search.strategy import Outcome, Proposal, Steps, Strategy

VERIFICATIONS = 8  # points of the front that are evaluated, at most
MOVES = 2  # exchanges that are tried, at most
HALVING = 4  # evaluations after which the expected losses are trusted no more, and what is left is halved
NEAR = 0.01  # points whose sizes differ by a smaller share count as one

TINY = 1e-12

Trial = Generator[Proposal, Outcome, Outcome]


@dataclass(frozen=True)
class _Evaluated:
    """An allocation with its outcome."""

    allocation: Allocation
    outcome: Outcome


@dataclass(frozen=True)
class _Step:
    """One site a precision lower or higher than it is: what that is expected to cost, and the bytes that it saves."""

    site: str
    format: Format
    cost: float
    saved: int


class KnapsackSearch(Strategy):
    """Solve the knapsack over all sites and precisions, evaluate the points that matter, exchange single sites.

    FRONT: with the smallest file preferred, the point that is expected to just keep the limit of quality, corrected
    after each evaluation, until the largest point that breaks it and the smallest that keeps it meet. With the score
    preferred, the point of the best expected score, until an evaluated one stands there.
    EXCHANGE: from the best evaluated allocation one site a precision lower, or one lower and another one higher, in
    the order of what is expected; a move stays when the evaluation says that it keeps the budget and is preferred.

    Vectors keep the options' float format; a binarized embedding keeps `sign` when their `signs` is true.
    """

    def __init__(self, anatomy: Anatomy, options: Options, goal: Goal, costs: Costs | None = None) -> None:
        super().__init__()
        self._goal, self._formats = goal, options.formats
        self._floats = options.uniform(anatomy, FLOAT32)
        self._sites = [site for site, fmt in self._floats.items() if fmt == FLOAT32 and not site.is_vector]
        self._costs = costs or Costs.by_bits([(site.name, site.numel) for site in self._sites], self._formats)
        self._items = [self._item(site.name, site.shape) for site in self._sites]
        self._outcomes: dict[str, Outcome] = {}

    @property
    def maximum_evaluations(self) -> int:
        """Every verification and every exchange, and the float matrices where no point of the front holds."""
        return VERIFICATIONS + MOVES + 1

    def steps(self) -> Steps:
        """The front, then the exchanges."""
        expected = ExpectedFront(pareto_front(self._items), self._goal, self._floats.anatomy.float32_bytes)
        walk = self._smallest if self._goal.budget.prefer == "smallest" else self._best_score
        yield from walk(expected)
        best = self._preferred(expected)
        if best is None:
            yield from self._try(self._floats, "front", "every matrix at float32")
        else:
            yield from self._exchanges(best)

    # ---- the front ---------------------------------------------------------------------------------------------

    def _smallest(self, expected: ExpectedFront) -> Steps:
        """Close in on the smallest point that keeps the limit, until hardly a byte can be expected to be saved."""
        sizes, limit = expected.front.sizes, self._goal.budget.max_loss
        fitting = self._fitting(expected)
        breaks, keeps = -1, fitting  # places on the front
        for number in range(VERIFICATIONS):
            within = np.arange(breaks + 1, keeps)
            held = within if limit is None else within[expected.decisive[within] <= limit]
            if not len(within) or (keeps < fitting and (not len(held) or sizes[held[0]] >= sizes[keeps] * (1 - NEAR))):
                return
            point = int(held[0]) if len(held) else int(within[-1])
            if number >= HALVING and breaks >= 0:
                point = int(within[np.searchsorted(sizes[within], (sizes[within[0]] + sizes[within[-1]]) / 2)])
            outcome = yield from self._verify(expected, point)
            breaks, keeps = (breaks, point) if outcome.quality_ok else (point, keeps)

    def _best_score(self, expected: ExpectedFront) -> Steps:
        """Evaluate where the best score is expected, until that has been evaluated."""
        sizes, limit = expected.front.sizes, self._goal.budget.max_loss
        fitting = np.arange(self._fitting(expected))
        for _ in range(VERIFICATIONS):
            open_ = fitting if limit is None else fitting[expected.decisive[fitting] <= limit]
            if not len(fitting):
                return
            point = int(open_[np.argmin(expected.orders[open_])]) if len(open_) else int(fitting[-1])
            if any(abs(sizes[point] - sizes[known]) <= NEAR * sizes[point] for known in expected.evidence):
                return
            yield from self._verify(expected, point)

    def _fitting(self, expected: ExpectedFront) -> int:
        """How many points, the smallest first, keep the limit of memory."""
        low, high = 0, len(expected.front)
        while low < high:
            middle = (low + high) // 2
            fits = self._goal.keeps_memory(self._allocation(expected, middle))
            low, high = (middle + 1, high) if fits else (low, middle)
        return low

    def _verify(self, expected: ExpectedFront, point: int) -> Trial:
        weights = sum(site.numel for site in self._sites)
        note = f"{8 * expected.front.sizes[point] / max(weights, 1):.2f} bits a weight at the least expected loss"
        outcome = yield from self._try(self._allocation(expected, point), "front", note)
        expected.evidence[point] = outcome
        return outcome

    def _preferred(self, expected: ExpectedFront) -> _Evaluated | None:
        """The best of the evaluated points that keep the budget."""
        evaluated = [_Evaluated(self._allocation(expected, point), found) for point, found in expected.evidence.items()]
        kept = [one for one in evaluated if one.outcome.quality_ok and self._goal.keeps_memory(one.allocation)]
        return min(kept, key=lambda one: self._goal.order(one.allocation, one.outcome), default=None)

    def _allocation(self, expected: ExpectedFront, point: int) -> Allocation:
        options = expected.front.options(point)
        chosen = {site.name: self._formats[option] for site, option in zip(self._sites, options, strict=True)}
        formats = tuple(chosen.get(site.name, fmt) for site, fmt in self._floats.items())
        return Allocation(self._floats.anatomy, formats, self._floats.quantizer)

    def _item(self, name: str, shape: tuple[int, ...]) -> Item:
        sizes = tuple(sum(map(data_bytes, stored_tensors(fmt, shape, name))) for fmt in self._formats)
        return Item(sizes, tuple(self._costs.of(name, fmt) for fmt in self._formats))

    # ---- the exchanges -----------------------------------------------------------------------------------------

    def _exchanges(self, best: _Evaluated) -> Steps:
        """Try the most promising moves; one that is better is where the next ones start."""
        for _ in range(MOVES):
            tried = next(self._untried(best), None)
            if tried is None:
                return
            moved, note = tried
            found = _Evaluated(moved, (yield from self._try(moved, "exchange", note)))
            if found.outcome.quality_ok and self._order(found) < self._order(best):
                best = found

    def _order(self, one: _Evaluated) -> float:
        return self._goal.order(one.allocation, one.outcome)

    def _decisive(self, one: _Evaluated) -> float:
        return one.outcome.bound if self._goal.budget.decision == "bound" else one.outcome.loss

    def _untried(self, best: _Evaluated) -> Iterator[tuple[Allocation, str]]:
        """What moves from the best allocation lead to, the most promising first, where they may keep the limit."""
        per_cost = max(best.outcome.loss, 0.0) / max(self._costs.total(best.allocation), TINY)
        slack = inf if self._goal.budget.max_loss is None else self._goal.budget.max_loss - self._decisive(best)
        for move in sorted(self._moves(best.allocation), key=self._promise):
            if per_cost * sum(step.cost for step in move) > slack:
                continue
            moved = best.allocation
            for step in move:
                moved = moved.replace([step.site], step.format)
            if moved.key not in self._outcomes and self._goal.keeps_memory(moved):
                yield moved, ", ".join(f"{step.site} at {step.format}" for step in move)

    def _moves(self, allocation: Allocation) -> Iterator[Sequence[_Step]]:
        """One site lower, or one lower and another one higher, so that fewer bytes remain."""
        lower, higher = self._steps_of(allocation, 1), self._steps_of(allocation, -1)
        for down in lower:
            yield (down,)
            yield from ((down, up) for up in higher if up.site != down.site and down.saved + up.saved > 0)

    def _promise(self, move: Sequence[_Step]) -> float:
        """The expected cost of each byte that a move saves: the least is the most promising."""
        return sum(step.cost for step in move) / sum(step.saved for step in move)

    def _steps_of(self, allocation: Allocation, places: int) -> list[_Step]:
        """Every site that many places further down the list of formats."""
        steps = []
        for site, item in zip(self._sites, self._items, strict=True):
            here = self._formats.index(allocation[site.name])
            there = here + places
            if 0 <= there < len(self._formats):
                cost = item.costs[there] - item.costs[here]
                steps.append(_Step(site.name, self._formats[there], cost, item.sizes[here] - item.sizes[there]))
        return steps

    def _try(self, allocation: Allocation, tier: str, note: str) -> Trial:
        if allocation.key not in self._outcomes:
            self._outcomes[allocation.key] = yield Proposal(allocation, tier, note)
        return self._outcomes[allocation.key]
