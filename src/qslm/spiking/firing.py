"""Outputs that leave a layer as spike counts, on one next step for each head (SpikeQuant, arXiv 2510.19498).

The potentials V of `spiking.linear` fire q' = round(V / theta), theta = s' / (s_i s_n): the output is requantized, and
nothing is dequantized. That each head has a next step s' of its own, as the KV caches of Atom and QuaRot have, is
derived: the outputs of one head are mixed by the same weights, and those of others by others.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qslm.errors import SpikeError
from qslm.spiking.encoding import SpikeCounts
from qslm.spiking.linear import SpikingLinear, fire, thresholds

SHARES = tuple(share / 20 for share in range(20, 1, -1))  # of the largest output, which the counts of a head may reach
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, eq=False)
class Firing:
    """How the outputs of a layer, (tokens, heads * head width), become counts of `bits` bits, sign included.

    steps: s' float32 (heads,), the static ones; None finds s' for each token and head, of its largest output, which is
    a second pass over the potentials, in floats. Raises SpikeError where bits are not 2 to 8, or steps are others.
    """

    bits: int
    heads: int
    steps: Tensor | None = None

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not 2 <= self.bits <= 8:
            raise SpikeError(f"No layer fires counts of {self.bits} bits.", "Give 2 to 8.")
        if self.steps is not None and (
            self.steps.dtype != torch.float32
            or self.steps.shape != (self.heads,)
            or not bool((torch.isfinite(self.steps) & (self.steps >= _TINY)).all())
        ):
            found = f"{self.steps.dtype} {list(self.steps.shape)}"
            raise SpikeError(
                f"The next steps of {self.heads} heads are {found}, or not above 0.",
                "Give one finite float32 number above 0 for each head.",
            )

    @property
    def most(self) -> int:
        """Where counts are clipped: 2^(bits - 1) - 1."""
        return (1 << (self.bits - 1)) - 1

    def fired(self, neurons: SpikingLinear, counts: SpikeCounts) -> tuple[Tensor, Tensor]:
        """The counts q' int64 (tokens, out), and their steps s' float32 (tokens, heads), of spike counts (tokens, in).

        A bias charges the membrane. Raises SpikeError as `thresholds` and `fire` do.
        """
        potentials = neurons.potentials(counts)
        steps = self._steps(neurons, potentials, counts.step)
        by_head = zip(neurons.scales.chunk(self.heads), steps.split(1, 1), strict=True)
        theta = torch.cat([thresholds(scales, counts.step, step) for scales, step in by_head], 1)
        return fire(potentials, theta, self.most, neurons.offsets(counts.step)), steps

    def values(self, fired: Tensor, steps: Tensor) -> Tensor:
        """The numbers that the counts (tokens, out) stand for, q' s', float32 (tokens, out)."""
        return (fired.float().unflatten(1, (self.heads, -1)) * steps[:, :, None]).flatten(1)

    def _steps(self, neurons: SpikingLinear, potentials: Tensor, step: Tensor) -> Tensor:
        """s' float32 (tokens, heads)."""
        if self.steps is not None:
            return self.steps.expand(len(potentials), -1)
        largest = neurons.values(potentials, step).unflatten(1, (self.heads, -1)).abs().amax(2)
        return (largest / self.most).clamp_(min=_TINY).masked_fill_(largest == 0, 1)


def calibrated_steps(outputs: Tensor, bits: int, heads: int) -> Tensor:
    """The next step of each head, float32 (heads,), whose counts have the least squared error (derived).

    outputs: float32 (tokens, heads * head width), of calibration text. Of the steps that reach a share of the largest
    output of the head (SHARES); 1 where all are 0. Raises SpikeError where there are none, or bits are not 2 to 8.
    """
    most = Firing(bits, heads).most
    if not len(outputs):
        raise SpikeError("No next step can be calibrated without outputs.", "Give calibration text.")
    rows = outputs.unflatten(1, (heads, -1))
    largest = rows.abs().amax((0, 2))
    candidates = (torch.tensor(SHARES)[:, None] * largest / most).clamp_(min=_TINY)  # (shares, heads)
    errors = torch.stack([_squared_error(rows, steps[:, None], most) for steps in candidates])
    best = candidates.gather(0, errors.argmin(0, keepdim=True)).squeeze(0)
    return best.masked_fill_(largest == 0, 1)


def _squared_error(rows: Tensor, steps: Tensor, most: int) -> Tensor:
    """Of each head: rows (tokens, heads, width), steps (heads, 1) -> float64 (heads,)."""
    rounded = (rows / steps).round_().clamp_(-most, most) * steps
    return (rounded - rows).double().square_().sum((0, 2))
