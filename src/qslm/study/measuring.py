"""What a study has measured: from the ledger where it is there, else now."""

from dataclasses import dataclass, field

from qslm.allocation import Allocation
from qslm.evaluation import Evaluation, Evaluator, Ledger
from qslm.evaluation.parts import Stop, seen
from qslm.evaluation.pool import Pool


@dataclass(frozen=True, eq=False)
class Measurements:
    """The evaluations that one run of a study asks for, each measured once and then kept in the ledger.

    `used` holds them by allocation key and split, in the order in which they were first asked for. With a `pool` its
    workers measure, and the evaluator does what needs the network here.
    """

    ledger: Ledger
    evaluator: Evaluator
    pool: Pool | None = None
    used: dict[tuple[str, str], Evaluation] = field(default_factory=dict)

    def measure(self, allocation: Allocation, split: str, tier: str, note: str, stop: Stop | None = None) -> Evaluation:
        """What the ledger holds, or a new evaluation that it holds from now on.

        Where `stop` ends an evaluation early, it ends at the same batch whatever the ledger holds beyond: a study
        that is done again sees what it saw. A partial one that `stop` lets go on is gone on with.
        """
        found = self.ledger.get(allocation.key, split)
        told = None if found is None else self._told(found, split, stop)
        if told is None:
            told = found = self._by(allocation).measure(allocation, split, stop=stop, known=found)
            self.ledger.put(allocation.key, split, allocation.to_json(), tier, note, told)
        self.used[allocation.key, split] = found or told
        return told

    def _by(self, allocation: Allocation) -> Pool | Evaluator:
        """Who measures it: the workers do not have what was learned here."""
        return self.evaluator if self.pool is None or allocation.is_reconstructed else self.pool

    def _told(self, found: Evaluation, split: str, stop: Stop | None) -> Evaluation | None:
        """What the ledger's evaluation says of the one that is asked for; None where it is not enough."""
        if stop is None:
            return found if found.complete else None
        return seen(self.evaluator.task, found, self.evaluator.places(split), stop)

    def known(self, allocation: Allocation, split: str) -> Evaluation | None:
        """What the ledger holds, also of an earlier run; None where it was never measured."""
        return self.ledger.get(allocation.key, split)
