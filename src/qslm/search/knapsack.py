"""Allocation as optimization: the least expected loss at every size, verified where it matters.

The expected losses (`Costs`) make a multiple-choice knapsack, solved exactly for the whole front. A few points of the
front are then evaluated; what they lose corrects what the others are expected to lose, until the preferred point is
found. At last single sites are exchanged for what the sum over sites cannot know, their interactions.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
import numpy.typing as npt

from qslm.allocation import Allocation
from qslm.anatomy import Anatomy, Site
from qslm.formats import FLOAT32, Format, data_bytes, entry_bytes, stored_tensors
from qslm.search.costs import Costs
from qslm.search.expected import ExpectedFront, order
from qslm.search.front import Front, Item, pareto_front
from qslm.search.goal import Goal
from qslm.search.options import Options
from qslm.search.strategy import Outcome, Proposal, Steps, Strategy

VERIFICATIONS = 8  # points of the front that are evaluated, at most
MOVES = 12  # exchanges that are tried, at most
FAILURES = 2  # exchanges in a row that are no better, after which there are no more
HALVING = 5  # evaluations after which the smallest is sought by halving, not where it is expected
NEAR = 0.01  # points whose sizes differ by a smaller share count as one
NOISE = 0.5  # of the reach of an evaluation's bound
HEADER = 32  # bytes by which the header of a file may differ from what is counted, for each site

TINY = 1e-12

Places = npt.NDArray[np.int64]


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

    FRONT: the point of the best expected order (the smallest, or the best score) of those that are expected to keep
    the limit of quality, corrected after each evaluation, until it is one that was evaluated; what is smaller than a
    point that broke the limit is left out.
    EXCHANGE: from the best evaluated allocation one site a precision lower or higher, or one lower and another one
    higher: the move of the best expected order of those that are expected to keep the limit. It stays when the
    evaluation says that it keeps the budget and is preferred.

    Nothing beyond the limit of memory is asked. Vectors keep the options' float format; a binarized embedding keeps
    `sign` when their `signs` is true.
    """

    def __init__(self, anatomy: Anatomy, options: Options, goal: Goal, costs: Costs | None = None) -> None:
        super().__init__(options.max_evaluations)
        self._anatomy, self._options, self._goal = anatomy, options, goal
        self._formats, self._sites = options.formats, options.matrices(anatomy)
        self._costs = costs or Costs.by_bits([(site.name, site.numel) for site in self._sites], self._formats)
        self._items = [self._item(site) for site in self._sites]

    @property
    def maximum_evaluations(self) -> int:
        """Every verification and every exchange, and the float matrices where no point of the front holds."""
        return self._at_most(VERIFICATIONS + MOVES + 1)

    def steps(self) -> Steps:
        """The front, then the exchanges."""
        expected = ExpectedFront(pareto_front(self._items), self._goal, self._anatomy.float32_bytes)
        yield from self._verifications(expected)
        best = self._preferred(expected)
        floats = self._options.uniform(self._anatomy, FLOAT32)
        if best is not None:
            yield from self._exchanges(best)
        elif self._goal.keeps_memory(floats):
            yield Proposal(floats, "front", "every matrix at float32")

    # ---- the front ---------------------------------------------------------------------------------------------

    def _verifications(self, expected: ExpectedFront) -> Steps:
        """Evaluate the most promising point, until no other is expected to be better."""
        sizes = expected.front.sizes
        fitting = open_ = self._fitting(expected.front)
        for _ in range(VERIFICATIONS):
            point = self._promising(expected, open_)
            if point is None:
                return
            outcome = yield from self._verified(expected, point)
            if not outcome.quality_ok:
                open_ = open_[sizes[open_] >= (1 + NEAR) * sizes[point]]
                if not len(open_) and fitting[-1] not in expected.evidence:
                    open_ = fitting[-1:]

    def _promising(self, expected: ExpectedFront, open_: Places) -> int | None:
        """The best of the open points by what is expected; None where it is as good as evaluated.

        Where expectations have failed HALVING times, the middle; where nothing has held, at last the largest point.
        """
        sizes, evidence = expected.front.sizes, expected.evidence
        kept = [point for point, outcome in evidence.items() if outcome.quality_ok]
        held = open_[expected.decisive[open_] <= self._limit_of_loss]
        if not len(open_) or (kept and not len(held)):
            return None
        if not kept and (not len(held) or len(evidence) == VERIFICATIONS - 1):
            return int(open_[-1])
        if len(evidence) >= HALVING and (not kept or self._goal.budget.prefer == "smallest"):
            within = open_[open_ <= min(kept, default=open_[-1])]
            held = within[2 * sizes[within] >= sizes[within[0]] + sizes[within[-1]]] if len(within) else held
        orders = expected.orders
        point = int(held[np.argmin(orders[held])])
        if any(abs(sizes[point] - sizes[one]) <= NEAR * sizes[one] for one in kept):
            return None
        best = min(kept, key=lambda one: float(orders[one]), default=None)
        if best is not None and orders[best] - orders[point] <= self._noise(evidence[best]):
            return None
        return point

    def _fitting(self, front: Front) -> Places:
        """The points that keep the limit of memory; only where a header could decide is a whole file counted."""
        if self._goal.budget.max_bytes is None:
            return np.arange(len(front))
        smallest = self._allocation(front, 0).footprint().file
        over = front.sizes - front.sizes[0] + smallest - self._goal.budget.max_bytes
        margin = HEADER * len(self._anatomy.sites)
        fits = [
            excess < -margin or self._goal.keeps_memory(self._allocation(front, point))
            for point, excess in enumerate(over[over <= margin])
        ]
        return np.flatnonzero(fits)

    def _verified(self, expected: ExpectedFront, point: int) -> Generator[Proposal, Outcome, Outcome]:
        weights = sum(site.numel for site in self._sites)
        note = f"{8 * expected.front.sizes[point] / max(weights, 1):.2f} bits a weight at the least expected loss"
        outcome = yield Proposal(self._allocation(expected.front, point), "front", note)
        expected.evidence[point] = outcome
        return outcome

    def _preferred(self, expected: ExpectedFront) -> _Evaluated | None:
        """The best of the evaluated points that keep the budget."""
        kept = [
            _Evaluated(self._allocation(expected.front, point), outcome)
            for point, outcome in expected.evidence.items()
            if outcome.quality_ok
        ]
        return min(kept, key=self._order, default=None)

    def _allocation(self, front: Front, point: int) -> Allocation:
        options = front.options(point)
        formats = {site.name: self._formats[option] for site, option in zip(self._sites, options, strict=True)}
        return self._options.mixed(
            self._anatomy, formats, {name: self._costs.quantizer(name, fmt) for name, fmt in formats.items()}
        )

    def _item(self, site: Site) -> Item:
        """Of every format the data, what its header takes beyond the shortest, and the expected loss."""
        stored = [stored_tensors(fmt, site.shape, site.name) for fmt in self._formats]
        entries = [sum(map(entry_bytes, tensors)) for tensors in stored]
        data = [sum(map(data_bytes, tensors)) for tensors in stored]
        sizes = tuple(one + entry - min(entries) for one, entry in zip(data, entries, strict=True))
        return Item(sizes, tuple(self._costs.of(site.name, fmt) for fmt in self._formats))

    def _noise(self, outcome: Outcome) -> float:
        """How much better a score must be expected to be for an evaluation to have a chance to show it; of bytes, 0."""
        if self._goal.budget.prefer == "smallest" or not isfinite(outcome.bound):
            return 0.0
        return NOISE * self._goal.per_loss * (outcome.bound - outcome.loss)

    @property
    def _limit_of_loss(self) -> float:
        limit = self._goal.budget.max_loss
        return inf if limit is None else limit

    # ---- the exchanges -----------------------------------------------------------------------------------------

    def _exchanges(self, best: _Evaluated) -> Steps:
        """Try the most promising moves as long as they succeed; one that does is where the next ones start."""
        failures = 0
        for _ in range(MOVES):
            moved, note = next(self._moved(best), (None, ""))
            if moved is None or failures == FAILURES:
                return
            found = _Evaluated(moved, (yield Proposal(moved, "exchange", note)))
            better = found.outcome.quality_ok and self._order(found) < self._order(best)
            best, failures = (found, 0) if better else (best, failures + 1)

    def _order(self, one: _Evaluated) -> float:
        return self._goal.order(one.allocation, one.outcome)

    def _moved(self, best: _Evaluated) -> Iterator[tuple[Allocation, str]]:
        """What moves from the best allocation lead to and was not evaluated, the most promising first.

        A loss is expected to change by the share by which the costs do; of one that is not finite nothing is.
        """
        if not isfinite(best.outcome.loss):
            return
        moves = self._moves(best.allocation)
        shares = np.array([sum(step.cost for step in move) for move in moves])
        shares /= max(sum(self._costs.of(site.name, best.allocation[site.name]) for site in self._sites), TINY)
        saved = np.array([sum(step.saved for step in move) for move in moves], np.int64)
        changes = order(self._goal, max(best.outcome.loss, 0.0) * shares, -saved, self._anatomy.float32_bytes)
        decisive = best.outcome.bound if self._goal.budget.decision == "bound" else best.outcome.loss
        keeps = (self._limit_of_loss == inf) | (max(decisive, 0.0) * (1 + shares) <= self._limit_of_loss)
        for place in np.argsort(changes, kind="stable"):
            if -changes[place] <= self._noise(best.outcome):
                return
            moved = best.allocation
            for step in moves[place] if keeps[place] else ():
                moved = moved.replace([step.site], step.format, self._costs.quantizer(step.site, step.format))
            if keeps[place] and moved.key not in self._told and self._goal.keeps_memory(moved):
                yield moved, ", ".join(f"{step.site} at {step.format}" for step in moves[place])

    def _moves(self, allocation: Allocation) -> list[tuple[_Step, ...]]:
        """One site a precision lower or higher, and one lower with another one higher."""
        lower, higher = self._steps_of(allocation, 1), self._steps_of(allocation, -1)
        pairs = [(down, up) for down in lower for up in higher if up.site != down.site]
        return [*((step,) for step in (*lower, *higher)), *pairs]

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
