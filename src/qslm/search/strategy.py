"""What every search strategy is: it proposes allocations and is told how they did."""

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from math import inf

from qslm.allocation import Allocation
from qslm.errors import StudyError


@dataclass(frozen=True)
class Proposal:
    """An allocation to evaluate; `tier` is the stage of the search and `note` what it tries, for people."""

    allocation: Allocation
    tier: str
    note: str


@dataclass(frozen=True)
class Outcome:
    """How an allocation did under the budget.

    loss: how much worse than the baseline it is, positive is worse, in the unit of the budget's limit. bound: the
    one-sided upper bound of the loss, infinite where nothing bounds it.
    """

    quality_ok: bool
    memory_ok: bool
    loss: float
    bound: float = inf


Steps = Generator[Proposal, Outcome, None]


class Strategy(ABC):
    """Proposes one allocation after the other: `ask`, evaluate, `tell`, until `ask` gives None.

    The same outcomes lead to the same proposals, so a study that stopped can be replayed from its ledger. A
    strategy is written as one generator, `steps`, that yields a Proposal and is sent its Outcome. An allocation
    that was told is not asked again: the generator is sent what was told. `limit` is the most evaluations to
    ask, what is settled without measuring among them.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._running: Steps | None = None
        self._pending: Proposal | None = None
        self._told: dict[str, Outcome] = {}
        self._limited = False

    @property
    def limited(self) -> bool:
        """Whether the limit of evaluations kept something from being tried."""
        return self._limited

    @abstractmethod
    def steps(self) -> Steps:
        """The whole search, as a generator of proposals that is sent outcomes."""

    @property
    @abstractmethod
    def maximum_evaluations(self) -> int:
        """No more evaluations than this are ever asked for."""

    def ask(self) -> Proposal | None:
        """The next allocation to evaluate, the same one until it is told; None when the search is over."""
        if self._running is None:
            self._running = self.steps()
            self._pending = next(self._running, None)
        return self._pending

    def tell(self, proposal: Proposal, outcome: Outcome) -> None:
        """Say how the asked allocation did. Raises StudyError when it is not the one that was asked for."""
        if self._running is None or proposal != self._pending:
            raise StudyError(f"{proposal.note!r} was told but not asked for.", "Tell the proposal that ask() gave.")
        self._told[proposal.allocation.key] = outcome
        following = self._next(self._running, outcome)
        self._limited = following is not None and self._limit is not None and len(self._told) >= self._limit
        self._pending = None if self._limited else following

    def _next(self, running: Steps, outcome: Outcome | None) -> Proposal | None:
        """The next proposal that nothing was told of."""
        try:
            while outcome is not None:
                proposal = running.send(outcome)
                outcome = self._told.get(proposal.allocation.key)
        except StopIteration:
            return None
        return proposal

    def _at_most(self, evaluations: int) -> int:
        """`evaluations`, or the limit where that is less."""
        return evaluations if self._limit is None else min(evaluations, self._limit)
