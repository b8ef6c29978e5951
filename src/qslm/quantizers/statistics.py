"""What is known of the inputs that a matrix sees, for the quantizers that weigh their errors by it."""

from dataclasses import dataclass

import torch

from qslm.errors import FormatError


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """moment: E[x x^T] (in, in) float32 over the inputs x (in,) of a matrix; count: of how many inputs."""

    moment: torch.Tensor
    count: int

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
