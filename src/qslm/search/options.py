"""What a search may be told beside its budget."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from qslm.allocation import Allocation
from qslm.anatomy import Anatomy
from qslm.budget import Budget, check_possible
from qslm.errors import AllocationError
from qslm.formats import FLOAT32, Format

Order = Literal["sensitivity", "network"]

PRECISIONS = (16, 14, 12, 10, 8, 6, 5, 4, 3, 2)
TEMPLATE = Format("integer", 8)


@dataclass(frozen=True)
class Options:
    """How the tiered search goes.

    precisions: the bit widths to try. template: how integers are stored (granularity, symmetry, scale type); a
    precision replaces its bits. vectors: the float format of one-dimensional parameters. signs: whether a binarized
    embedding is stored as signs. quantizer: how weights are rounded, "clip" or "minmax". order: of the blocks, by
    the loss of each alone ("sensitivity") or as they stand ("network"). limit: evaluations at most. Raises
    AllocationError or FormatError on what makes no search.
    """

    precisions: Sequence[int] = PRECISIONS
    template: Format = TEMPLATE
    vectors: Format = FLOAT32
    signs: bool = True
    quantizer: str = "clip"
    order: Order = "sensitivity"
    limit: int | None = None

    def __post_init__(self) -> None:
        if not self.precisions:
            raise AllocationError("The list of precisions is empty.", "Give bit widths, such as 8 6 4.")
        if self.template.kind != "integer":
            raise AllocationError(f"{self.template} is no integer format.", "Give one such as int4-row or int4-g64.")
        if self.vectors.kind != "float":
            raise AllocationError(f"{self.vectors} is no float format.", "Vectors are float32, float16 or bfloat16.")
        if self.order not in ("sensitivity", "network"):
            raise AllocationError(f"There is no order {self.order!r}.", "Choose sensitivity or network.")
        if self.limit is not None and self.limit < 1:
            raise AllocationError(f"A limit of {self.limit} evaluations leaves nothing to search.", "Give 1 or more.")

    @property
    def formats(self) -> tuple[Format, ...]:
        """The template at every precision, from the highest to the lowest."""
        return tuple(replace(self.template, bits=bits) for bits in sorted(set(self.precisions), reverse=True))

    def uniform(self, anatomy: Anatomy, fmt: Format) -> Allocation:
        """Every matrix in `fmt`, vectors and signs as these options say."""
        return Allocation.uniform(anatomy, fmt, vectors=self.vectors, signs=self.signs, quantizer=self.quantizer)

    def smallest(self, anatomy: Anatomy) -> Allocation:
        """The smallest allocation that the search can reach: every matrix at the lowest precision."""
        return self.uniform(anatomy, self.formats[-1])

    def check_possible(self, anatomy: Anatomy, budget: Budget) -> None:
        """Raise BudgetError, naming the nearest possible budget, when no allocation is small enough."""
        check_possible(budget.max_bytes, self.smallest(anatomy).footprint().file, anatomy.float32_bytes)

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON values."""
        texts = {"template": str(self.template), "vectors": str(self.vectors), "precisions": list(self.precisions)}
        return {**vars(self), **texts}


DEFAULT_OPTIONS = Options()
