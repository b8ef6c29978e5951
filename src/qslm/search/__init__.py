"""Search strategies: what to evaluate next. A strategy never sees the model; it asks and is told."""

from qslm.search.goal import Goal
from qslm.search.options import DEFAULT_OPTIONS, TEMPLATE, Options
from qslm.search.strategies import NAMES, make_strategy
from qslm.search.strategy import Outcome, Proposal, Strategy
from qslm.search.tiered import TieredSearch

__all__ = [
    "DEFAULT_OPTIONS",
    "NAMES",
    "TEMPLATE",
    "Goal",
    "Options",
    "Outcome",
    "Proposal",
    "Strategy",
    "TieredSearch",
    "make_strategy",
]
