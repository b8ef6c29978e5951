"""Every strategy by its name."""

from qslm.anatomy import Anatomy
from qslm.search.costs import Costs
from qslm.search.goal import Goal
from qslm.search.greedy import GreedySearch
from qslm.search.knapsack import KnapsackSearch
from qslm.search.options import NAMES, Options, check_name
from qslm.search.optuna import Nsga2Search, TpeSearch
from qslm.search.random import RandomSearch
from qslm.search.strategy import Strategy
from qslm.search.tiered import TieredSearch
from qslm.search.uniform import UniformSearch

__all__ = ["NAMES", "make_strategy"]


def make_strategy(name: str, anatomy: Anatomy, options: Options, goal: Goal, costs: Costs | None = None) -> Strategy:
    """A new strategy: one of NAMES, whatever `options.strategy` says.

    `costs` are for the knapsack alone. Raises AllocationError when there is no such strategy, and StudyError when
    it needs a package that is not installed.
    """
    check_name(name)
    match name:
        case "tiered" | "literal":
            return TieredSearch(anatomy, options, literal=name == "literal")
        case "uniform":
            return UniformSearch(anatomy, options)
        case "greedy":
            return GreedySearch(anatomy, options)
        case "random":
            return RandomSearch(anatomy, options, goal)
        case "tpe":
            return TpeSearch(anatomy, options, goal)
        case "nsga2":
            return Nsga2Search(anatomy, options, goal)
    return KnapsackSearch(anatomy, options, goal, costs)
