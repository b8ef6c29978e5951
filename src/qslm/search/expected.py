"""What the points of a front are expected to lose, corrected by those that were evaluated."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qslm.search.front import Front
from qslm.search.goal import LEAST, Goal
from qslm.search.strategy import Outcome

Floats = npt.NDArray[np.float64]

LARGEST_CORRECTION = 1e3  # a factor beyond it, or below its inverse, is noise
POWERS = -2 / 3, 2.0  # of the costs, in a factor beyond what was evaluated: losses go with the costs^(1/3) to costs^3


@dataclass(frozen=True, eq=False)
class ExpectedFront:
    """A front whose costs are nats, and the evidence: place, measured loss and bound of the evaluated points.

    float32_bytes: all tensors of the network in float32.
    """

    front: Front
    goal: Goal
    float32_bytes: int
    evidence: dict[int, Outcome] = field(default_factory=dict)

    @property
    def losses(self) -> Floats:
        """The expected loss of every point, in the budget's unit."""
        return self._corrected({point: outcome.loss for point, outcome in self.evidence.items()})

    @property
    def decisive(self) -> Floats:
        """The expected value of what the budget decides by, its bound or its loss; it does not rise with size."""
        if self.goal.budget.decision == "point":
            expected = self.losses
        else:
            expected = self._corrected({point: outcome.bound for point, outcome in self.evidence.items()})
        return np.maximum.accumulate(expected[::-1])[::-1]

    @property
    def orders(self) -> Floats:
        """What the budget prefers has the smaller one: the bytes, or Eq. 1, each up to what all points share."""
        return order(self.goal, self.losses, self.front.sizes, self.float32_bytes)

    def _corrected(self, measured: Mapping[int, float]) -> Floats:
        """The losses of the costs times a factor, a power of the costs between any two evaluated points.

        Beyond them the power goes on, within POWERS; one point alone gives the same factor everywhere.
        """
        costs = np.maximum(self.front.costs, LEAST)
        points = sorted((point for point, loss in measured.items() if np.isfinite(loss)), reverse=True)
        if not points:
            return self.goal.losses(costs)
        nats = self.goal.nats(np.array([measured[point] for point in points])).clip(LEAST, 1 / LEAST)
        factors = np.log((nats / costs[points]).clip(1 / LARGEST_CORRECTION, LARGEST_CORRECTION))
        table = _extended(np.log(costs[points]), factors, np.log(costs[[-1, 0]]))
        return self.goal.losses(costs * np.exp(np.interp(np.log(costs), *table)))


def _extended(x: Floats, y: Floats, ends: Floats) -> tuple[Floats, Floats]:
    """Points on lines, `x` rising, with the first and the last line drawn on to the two ends of the axis."""
    slopes = (np.diff(y) / np.maximum(np.diff(x), LEAST)).clip(*POWERS) if len(x) > 1 else np.zeros(1)
    drawn = y[[0, -1]] + slopes[[0, -1]] * (ends - x[[0, -1]])
    return np.concatenate((ends[:1], x, ends[1:])), np.concatenate((drawn[:1], y, drawn[1:]))


def order(goal: Goal, losses: Floats, sizes: npt.NDArray[np.int64], float32_bytes: int) -> Floats:
    """`Goal.order` of expected losses (in the budget's unit) and sizes (in bytes), up to what all share."""
    if goal.budget.prefer == "smallest":
        return sizes.astype(np.float64)
    orders: Floats = goal.per_loss * losses + (goal.budget.mu or 0.0) * sizes / max(float32_bytes, 1)
    return orders
