"""Optuna's samplers as strategies: TPE and NSGA-II (optional extra `optuna`)."""

from abc import abstractmethod
from collections.abc import Sequence
from math import isnan
from typing import Any, ClassVar

from qslm.allocation import Allocation
from qslm.anatomy import Anatomy
from qslm.errors import StudyError
from qslm.search.goal import Goal
from qslm.search.options import EVALUATIONS, Options
from qslm.search.strategy import Outcome, Proposal, Steps, Strategy

TRIALS = 4  # trials for each evaluation: those that exceed the memory, or repeat one, cost nothing but time
POPULATION = 20
WORST = 1e30  # stands for what has no finite number


class OptunaSearch(Strategy):
    """A sampler of Optuna, asked and told in memory.

    Each matrix is one categorical parameter over the precisions. The first trials are the uniform allocations. An
    allocation that exceeds the memory is told to the sampler as infeasible without being evaluated, and the next
    trial is the same with every matrix so many precisions lower that it fits: what a sampler draws by itself hardly
    ever keeps a tight budget. Both limits are constraints of the trials, as shares: `Goal.memory_excess` and
    `Goal.quality_excess`. Raises StudyError when Optuna is not installed.
    """

    tier: ClassVar[str]
    directions: ClassVar[tuple[str, ...]]  # of the objectives

    def __init__(self, anatomy: Anatomy, options: Options, goal: Goal) -> None:
        super().__init__(options.max_evaluations or EVALUATIONS)
        self._anatomy, self._options, self._goal, self._optuna = anatomy, options, goal, _import_optuna()

    @property
    def maximum_evaluations(self) -> int:
        """The limit: a sampler has no other end."""
        return self._options.max_evaluations or EVALUATIONS

    @abstractmethod
    def sampler(self) -> Any:
        """A new sampler with the seed of the options."""

    @abstractmethod
    def objectives(self, allocation: Allocation, outcome: Outcome) -> Sequence[float]:
        """What the sampler minimizes."""

    def steps(self) -> Steps:
        """The trials."""
        study, formats = self._study(), self._options.formats
        names = [site.name for site in self._options.matrices(self._anatomy)]
        choices = self._optuna.distributions.CategoricalDistribution(range(len(formats)))
        for place in range(len(formats)):
            study.enqueue_trial(dict.fromkeys(names, place))
        for number in range(len(formats) + TRIALS * self.maximum_evaluations):
            trial = study.ask(dict.fromkeys(names, choices))
            allocation = self._allocation(trial.params)
            excess, objectives = 0.0, [WORST] * len(self.directions)
            if self._goal.keeps_memory(allocation):
                outcome = yield Proposal(allocation, self.tier, f"trial {number}")
                excess = _finite(self._goal.quality_excess(outcome))
                objectives = [_finite(value) for value in self.objectives(allocation, outcome)]
            elif lower := self._lowered(trial.params):
                study.enqueue_trial(lower)
            trial.set_constraint("memory", self._goal.memory_excess(allocation))
            trial.set_constraint("quality", excess)
            study.tell(trial, objectives)

    def _allocation(self, places: dict[str, int]) -> Allocation:
        formats = self._options.formats
        return self._options.mixed(self._anatomy, {name: formats[place] for name, place in places.items()})

    def _lowered(self, places: dict[str, int]) -> dict[str, int] | None:
        """Every matrix as few places lower as keeps the memory; None when the lowest does not."""
        last = len(self._options.formats) - 1
        for down in range(1, last + 1):
            lower = {name: min(place + down, last) for name, place in places.items()}
            if self._goal.keeps_memory(self._allocation(lower)):
                return lower
        return None

    def _study(self) -> Any:
        """A study in memory; Optuna's log stays as loud as it was, but for this."""
        logging = self._optuna.logging
        before = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)
        try:
            return self._optuna.create_study(directions=self.directions, sampler=self.sampler())
        finally:
            logging.set_verbosity(before)


class TpeSearch(OptunaSearch):
    """The multivariate tree-structured Parzen estimator, on what the budget prefers: bytes, or Eq. 1."""

    tier, directions = "tpe", ("minimize",)

    def sampler(self) -> Any:
        """Optuna's TPE as it comes."""
        return self._optuna.samplers.TPESampler(seed=self._options.seed)

    def objectives(self, allocation: Allocation, outcome: Outcome) -> Sequence[float]:
        """The budget's order."""
        return [self._goal.order(allocation, outcome)]


class Nsga2Search(OptunaSearch):
    """NSGA-II on two objectives, the loss and the bytes of the file, in populations of 20."""

    tier, directions = "nsga2", ("minimize", "minimize")

    def sampler(self) -> Any:
        """Optuna's NSGA-II with a population for some hundred evaluations."""
        return self._optuna.samplers.NSGAIISampler(seed=self._options.seed, population_size=POPULATION)

    def objectives(self, allocation: Allocation, outcome: Outcome) -> Sequence[float]:
        """The loss, and the bytes."""
        return [outcome.loss, float(allocation.footprint().file)]


def _finite(value: float) -> float:
    """A number that a sampler can take."""
    return WORST if isnan(value) else min(max(value, -WORST), WORST)


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise StudyError(
            "Optuna is not installed, and the strategies tpe and nsga2 are its samplers.",
            "Install it: pip install 'qslm[optuna]'.",
        ) from error
    return optuna
