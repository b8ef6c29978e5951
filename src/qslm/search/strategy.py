"""What every search strategy is: it proposes allocations and is told how they did."""

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass

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
    """How an allocation did under the budget; `loss` is how much worse than the baseline it is (positive)."""

    quality_ok: bool
    memory_ok: bool
    loss: float


Steps = Generator[Proposal, Outcome, None]


class Strategy(ABC):
    """Proposes one allocation after the other: `ask`, evaluate, `tell`, until `ask` gives None.

    The same outcomes lead to the same proposals, so a study that stopped can be replayed from its ledger. A
    strategy is written as one generator, `steps`, that yields a Proposal and is sent its Outcome.
    """

    def __init__(self) -> None:
        self._running: Steps | None = None
        self._pending: Proposal | None = None

    @property
    def limited(self) -> bool:
        """Whether a limit of evaluations kept something from being tried; a strategy without one never is."""
        return False

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
        try:
            self._pending = self._running.send(outcome)
        except StopIteration:
            self._pending = None
