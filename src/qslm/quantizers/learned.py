"""Learned rounding: whether each number is rounded down or up is found by gradient descent, after AdaRound.

AdaRound (Nagel et al., ICML 2020) learns a share between the two points of the grid around a weight and presses it to
0 or 1 by a regularizer. Here a temperature that falls does so (derived). The scales are learned with it, which is
learning the clipping; those of 8 bits share a step and stay.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from qslm.errors import FormatError
from qslm.formats.dtypes import code_dtype
from qslm.formats.quantized import QuantizedTensor, spread
from qslm.formats.scales import powers_of_two, stored_scales

TOWARDS = 0.25  # of the way from the weight to the rounded one, where learning starts (derived)
MARGIN = 0.02  # of the shares at the start from 0 and 1, where no gradient would move them
REACH = 0.5  # of the logarithm of a scale's factor, at most


class LearnedRounding(nn.Module):
    """A rounded weight (out, in), and what is learned of its rounding: logits v (out, in), and g of every scale.

    w_hat = (floor(w / s + z) + sigmoid(v / temperature) - z) s exp(g)

    At temperature 1 and g = 0 it is between the weight and `start`, as far as the grid reaches: the weight itself would
    forget what a calibrated start made up for, `start` itself would leave nothing undecided. As the temperature falls
    the sigmoid becomes 0 or 1, and w_hat a number of the grid. Raises FormatError where `start` has no codes.
    """

    def __init__(self, weight: Tensor, start: QuantizedTensor) -> None:
        super().__init__()
        if start.scales is None or start.codes is None:
            raise FormatError(f"{start.format} has no codes to learn.", "Learn the rounding of integer formats.")
        self.start = start
        columns, format = start.codes.shape[1], start.format
        unscaled = 1.0 if start.exponents is None else powers_of_two(-start.exponents)
        self._scales = spread(start.scales.float(), columns, format) * unscaled
        self._zeros = 0.0 if start.zeros is None else spread(start.zeros.float(), columns, format)
        exact = weight.detach().float().reshape(start.codes.shape) / self._scales + self._zeros
        place = torch.lerp(exact, start.codes.float(), TOWARDS).clamp(format.lowest, format.highest)
        self._below = place.floor().clamp(max=format.highest - 1)
        self.logits = nn.Parameter(torch.logit((place - self._below).clamp(MARGIN, 1 - MARGIN)))
        self.logarithms = nn.Parameter(torch.zeros_like(start.scales, dtype=torch.float32), start.step is None)

    def forward(self, temperature: float) -> Tensor:
        """w_hat in the shape of the weight."""
        codes = self._below + torch.sigmoid(self.logits / temperature)
        scales = self._scales * spread(self._factors(), codes.shape[1], self.start.format)
        return ((codes - self._zeros) * scales).reshape(self.start.shape)

    def _factors(self) -> Tensor:
        """exp(g) (rows, groups)."""
        return self.logarithms.clamp(-REACH, REACH).exp()

    @torch.no_grad()
    def rounded(self, name: str) -> QuantizedTensor:
        """w_hat where the temperature is 0, with scales as they are stored. Raises FormatError, which says `name`."""
        codes = (self._below + (self.logits > 0)).to(code_dtype(self.start.format))
        return with_factors(replace(self.start, codes=codes), self._factors(), name)


def with_factors(tensor: QuantizedTensor, factors: Tensor, name: str) -> QuantizedTensor:
    """A rounded weight with its scales (rows, groups) times positive factors (rows, groups) or (rows, 1).

    Scales of 8 bits stay as they are, and so does what has none. Raises FormatError, which says `name`, where one
    becomes too large.
    """
    if tensor.scales is None or tensor.step is not None:
        return tensor
    return replace(tensor, scales=stored_scales(tensor.scales.double() * factors.double(), tensor.format, name))
