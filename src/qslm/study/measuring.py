"""What a study has measured: from the ledger where it is there, else now."""

from dataclasses import dataclass, field

from qslm.allocation import Allocation
from qslm.evaluation import Evaluation, Evaluator, Ledger


@dataclass(frozen=True, eq=False)
class Measurements:
    """The evaluations that one run of a study asks for, each measured once and then kept in the ledger.

    `used` holds them by allocation key and split, in the order in which they were first asked for.
    """

    ledger: Ledger
    evaluator: Evaluator
    used: dict[tuple[str, str], Evaluation] = field(default_factory=dict)

    def measure(self, allocation: Allocation, split: str, tier: str, note: str) -> Evaluation:
        """What the ledger holds, or a new evaluation that it holds from now on."""
        found = self.ledger.get(allocation.key, split)
        if found is None:
            found = self.evaluator.measure(allocation, split)
            self.ledger.put(allocation.key, split, allocation.to_json(), tier, note, found)
        return self.used.setdefault((allocation.key, split), found)

    def known(self, allocation: Allocation, split: str) -> Evaluation | None:
        """What the ledger holds, also of an earlier run; None where it was never measured."""
        return self.ledger.get(allocation.key, split)
