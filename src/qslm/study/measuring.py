"""What a study has measured: from the ledger where it is there, else now."""

from collections.abc import Callable
from dataclasses import dataclass, field

from qslm.allocation import Allocation
from qslm.evaluation import Evaluation, Evaluator, Ledger
from qslm.tasks.task import Losses


@dataclass(frozen=True, eq=False)
class Measurements:
    """The evaluations that one run of a study asks for, each measured once and then kept in the ledger.

    `used` holds them by allocation key and split, in the order in which they were first asked for.
    """

    ledger: Ledger
    evaluator: Evaluator
    used: dict[tuple[str, str], Evaluation] = field(default_factory=dict)

    def measure(
        self, allocation: Allocation, split: str, tier: str, note: str, stop: Callable[[Losses], bool] | None = None
    ) -> Evaluation:
        """What the ledger holds, or a new evaluation that it holds from now on.

        A partial one is taken as it is where `stop` says yes to it, as it did before; else it is gone on with.
        """
        found = self.ledger.get(allocation.key, split)
        if found is None or not (found.complete or (stop is not None and stop(found.losses))):
            found = self.evaluator.measure(allocation, split, stop=stop, known=found)
            self.ledger.put(allocation.key, split, allocation.to_json(), tier, note, found)
        self.used[allocation.key, split] = found
        return found

    def known(self, allocation: Allocation, split: str) -> Evaluation | None:
        """What the ledger holds, also of an earlier run; None where it was never measured."""
        return self.ledger.get(allocation.key, split)
