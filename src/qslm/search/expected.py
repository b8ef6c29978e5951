"""What the points of a front are expected to lose, corrected by those that were evaluated."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qslm.search.front import Front
from qslm.search.goal import Goal
from qslm.search.strategy import Outcome

Floats = npt.NDArray[np.float64]

LARGEST_CORRECTION = 50.0  # a factor beyond it, or below its inverse, is noise
_LEAST = 1e-12


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
        """The expected value of what the budget decides by, its bound or its loss; it does not fall with size."""
        if self.goal.budget.decision == "point":
            expected = self.losses
        else:
            expected = self._corrected({point: outcome.bound for point, outcome in self.evidence.items()})
        return np.maximum.accumulate(expected[::-1])[::-1]

    @property
    def orders(self) -> Floats:
        """Eq. 1 turned so that less is better, up to a number that all points share."""
        goal, bytes_ = self.goal, self.front.sizes / max(self.float32_bytes, 1)
        per_loss = goal.unit * (100.0 if goal.higher_is_better else 1.0)
        orders: Floats = per_loss * self.losses + (goal.budget.mu or 0.0) * bytes_
        return orders

    def _corrected(self, measured: dict[int, float]) -> Floats:
        """The uncorrected losses times a factor that is interpolated between the evaluated points."""
        plain = np.maximum(self._plain(), _LEAST)
        points = sorted((point for point, loss in measured.items() if np.isfinite(loss)), reverse=True)
        if not points:
            return plain
        factors = np.array([max(measured[point], _LEAST) / plain[point] for point in points])
        logs = np.log(factors.clip(1 / LARGEST_CORRECTION, LARGEST_CORRECTION))
        corrected: Floats = plain * np.exp(np.interp(np.log(plain), np.log(plain[points]), logs))
        return corrected

    def _plain(self) -> Floats:
        """The loss that costs stand for, were they exact: derived; for a share, that as many answers change."""
        costs, kind = self.front.costs, self.goal.budget.kind
        if self.goal.higher_is_better:
            scale = {"points": 100.0, "absolute": 1.0, "relative": 1.0}[kind]
            return scale * -np.expm1(-costs)
        return (1.0 if kind == "relative" else abs(self.goal.baseline)) * np.expm1(costs)
