"""Search strategies: what to evaluate next. A strategy never sees the model; it asks and is told."""

from qslm.search.strategy import Outcome, Proposal, Strategy
from qslm.search.tiered import PRECISIONS, TieredSearch

__all__ = ["PRECISIONS", "Outcome", "Proposal", "Strategy", "TieredSearch"]
