"""What is known of the inputs that a matrix sees, for the quantizers that weigh their errors by it."""

from dataclasses import dataclass
from functools import cached_property

import torch

from qslm.errors import FormatError
from qslm.formats.scales import powers_of_two

LEAST = -8  # exponent; the largest is 0


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """moment: E[x x^T] (in, in) float32 over the inputs x (in,) of a matrix; count: of how many inputs.

    exponents: k (in,) int8, where what makes the inputs can be multiplied by 2^-k and the columns of the matrix by 2^k
    without changing the network (`Fold`), and rounding is better for it; None elsewhere.
    """

    moment: torch.Tensor
    count: int
    exponents: torch.Tensor | None = None

    @property
    def importance(self) -> torch.Tensor:
        """E[x^2] of every input (in,) float32, in units of their mean; all 1 where every input is always 0."""
        squares = self.moment.diagonal()
        mean = squares.double().mean()
        return (squares / mean).float() if mean > 0 else torch.ones_like(squares)

    @cached_property
    def scaled(self) -> "InputStatistics":
        """The statistics of the inputs diag(2^-k) x that columns times 2^k see, k the exponents."""
        assert self.exponents is not None
        inverse = powers_of_two(-self.exponents)
        return InputStatistics(inverse[:, None] * self.moment * inverse, self.count)

    def check(self, columns: int, name: str) -> None:
        """Raise FormatError, which says `name`, unless they are finite and of a matrix (out, columns)."""
        if self.moment.shape != (columns, columns):
            raise FormatError(
                f"{name} has {columns} inputs, the statistics are of {' x '.join(map(str, self.moment.shape))}.",
                "Collect the statistics of this network.",
            )
        if not bool(torch.isfinite(self.moment).all()):
            raise FormatError(
                f"{name}: the inputs that it sees on the calibration text are not finite.", "Check the checkpoint."
            )
        found = self.exponents
        if found is not None and (
            (found.dtype, found.shape) != (torch.int8, (columns,)) or not bool(((found >= LEAST) & (found <= 0)).all())
        ):
            raise FormatError(
                f"{name}: the exponents of its {columns} inputs are {found.dtype} {list(found.shape)}, not int8 from "
                f"{LEAST} to 0.",
                "Collect the statistics of this network.",
            )
