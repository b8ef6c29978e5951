"""What a strategy may know of the question: the budget, and where the float network stands."""

from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
import numpy.typing as npt

from qslm.allocation import Allocation
from qslm.budget import Budget
from qslm.search.strategy import Outcome

LEAST_LIMIT = 1e-3  # shares of a smaller limit of the loss are taken of this
LARGEST_NATS = 100.0  # more is no better known, and its exponential would outgrow a float
LEAST = 1e-12
LEAST_EXCESS = 1e-9  # of what breaks the limit by less than can be counted


Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Goal:
    """What is asked: a budget, the float network's metric on the search split (accuracy as a fraction), its direction.

    A study's budget has in `max_bytes` what is accepted: fewer bytes than the checkpoint's file too.
    """

    budget: Budget
    baseline: float
    higher_is_better: bool

    def keeps_memory(self, allocation: Allocation) -> bool:
        """Whether the model file is small enough, counted without any measuring."""
        return self.budget.max_bytes is None or allocation.footprint().file <= self.budget.max_bytes

    def memory_excess(self, allocation: Allocation) -> float:
        """How far the file is over the limit, as a share of it; 0 where it is kept."""
        if self.keeps_memory(allocation):
            return 0.0
        return allocation.footprint().file / max(self.budget.max_bytes or 0, 1) - 1

    def quality_excess(self, outcome: Outcome) -> float:
        """How far the loss is over the limit, as a share of it; 0 only where it is kept, infinite where it has no size.

        What the budget decides by is taken: the bound, or the loss; the loss also where nothing bounds it.
        """
        if outcome.quality_ok:
            return 0.0
        by_bound = self.budget.decision == "bound" and isfinite(outcome.bound)
        decisive, limit = outcome.bound if by_bound else outcome.loss, self.budget.max_loss
        if limit is None or not isfinite(decisive):
            return inf
        return max((decisive - limit) / max(limit, LEAST_LIMIT), LEAST_EXCESS)

    @property
    def unit(self) -> float:
        """How much of the metric one unit of the loss is."""
        return {"points": 0.01, "absolute": 1.0, "relative": abs(self.baseline)}[self.budget.kind]

    @property
    def per_loss(self) -> float:
        """How much of the score one unit of the loss is: Eq. 1 takes a share in percentage points."""
        return self.unit * (100.0 if self.higher_is_better else 1.0)

    def losses(self, nats: Floats) -> Floats:
        """What costs in nats stand for, in units of the loss. Derived: perplexity grows by e^nats, a share falls by
        the nats."""
        grown = nats if self.higher_is_better else np.expm1(np.minimum(nats, LARGEST_NATS))
        return self._whole * grown

    def nats(self, losses: Floats) -> Floats:
        """The inverse of `losses`."""
        shares: Floats = np.asarray(losses) / self._whole
        return shares if self.higher_is_better else np.log1p(np.maximum(shares, LEAST - 1))

    @property
    def _whole(self) -> float:
        """The whole of the metric, in units of the loss: all answers, or the baseline's perplexity."""
        whole = 1.0 if self.higher_is_better else abs(self.baseline)
        return max(whole, LEAST) / max(self.unit, LEAST)

    def value(self, outcome: Outcome) -> float:
        """The metric that an outcome's loss stands for."""
        return self.baseline + (-1 if self.higher_is_better else 1) * self.unit * outcome.loss

    def order(self, allocation: Allocation, outcome: Outcome) -> float:
        """What the budget prefers has the smaller order: the file's bytes, or Eq. 1 turned so that less is better.

        Of allocations that keep the budget; the budget itself is not looked at.
        """
        if self.budget.prefer == "smallest":
            return float(allocation.footprint().file)
        ratio = allocation.footprint().tensors / max(allocation.anatomy.float32_bytes, 1)
        score = self.budget.score(self.value(outcome), ratio, self.higher_is_better)
        return -score if self.higher_is_better else score
