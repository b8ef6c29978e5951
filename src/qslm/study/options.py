"""What a search may be told beside its budget."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from qslm.allocation import Allocation
from qslm.anatomy import Anatomy
from qslm.budget import Budget, check_possible
from qslm.formats import FLOAT32, Format
from qslm.search import PRECISIONS, TieredSearch
from qslm.search.tiered import TEMPLATE, Order


@dataclass(frozen=True)
class Options:
    """How the tiered search goes; the fields are those of `TieredSearch`."""

    precisions: Sequence[int] = PRECISIONS
    template: Format = TEMPLATE
    vectors: Format = FLOAT32
    signs: bool = True
    quantizer: str = "clip"
    order: Order = "sensitivity"
    limit: int | None = None

    def strategy(self, anatomy: Anatomy) -> TieredSearch:
        """The search itself. Raises AllocationError and FormatError on options that make none."""
        return TieredSearch(
            anatomy,
            self.precisions,
            self.template,
            self.vectors,
            self.signs,
            self.quantizer,
            self.order,
            self.limit,
        )

    def smallest(self, anatomy: Anatomy) -> Allocation:
        """The smallest allocation that the search can reach: every matrix at the lowest precision."""
        lowest = replace(self.template, bits=min(self.precisions))
        return Allocation.uniform(anatomy, lowest, vectors=self.vectors, signs=self.signs, quantizer=self.quantizer)

    def check_possible(self, anatomy: Anatomy, budget: Budget) -> None:
        """Raise BudgetError, naming the nearest possible budget, when no allocation is small enough.

        Options that make no search raise their own errors first.
        """
        self.strategy(anatomy)
        smallest = self.smallest(anatomy).footprint().file
        check_possible(budget.max_bytes, smallest, anatomy.float32_bytes)

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON values."""
        return {
            "precisions": list(self.precisions),
            "template": str(self.template),
            "vectors": str(self.vectors),
            "signs": self.signs,
            "quantizer": self.quantizer,
            "order": self.order,
            "limit": self.limit,
        }
