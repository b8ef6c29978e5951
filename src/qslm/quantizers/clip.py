"""Clip search: the grid spans the part of the range that leaves the smallest squared error.

For every scale, both ends of the range are shrunk by one ratio r; r is searched on a coarse grid (1, 0.9, ...,
0.1) and then on a fine one around the best (steps of 0.02). Scales are rounded to their stored type before an
error is measured, and r = 1 is among the candidates, so that no scale does worse than with min-max. Scales of 8 bits
keep the step of min-max.
"""

import torch

from qslm.formats import Format
from qslm.formats.quantized import QuantizedTensor
from qslm.quantizers.grid import Grid, extremes, grid, merged, quantize_to, squared_error

COARSE = tuple(-tenth / 10 for tenth in range(1, 10))
FINE = (0.08, 0.06, 0.04, 0.02, -0.02, -0.04, -0.06, -0.08)


def quantize(weight: torch.Tensor, format: Format, *, name: str = "weight") -> QuantizedTensor:
    """Round a finite float32 weight (out, in) into an integer format; raises as min-max does."""
    return quantize_to(weight, search_grid(weight, format, name), format)


def search_grid(weight: torch.Tensor, format: Format, name: str, importance: torch.Tensor | None = None) -> Grid:
    """The grid of the smallest squared error of each scale, for a weight (out, in).

    `importance` (in,) float32 weighs the errors of the columns; without it all count alike.
    """
    low, high = extremes(weight, format)
    best = grid(low, high, format, name)
    unit = best.scales.float()
    error = squared_error(weight, best, unit, format, importance)
    ratio = torch.ones_like(low)
    for offsets in (COARSE, FINE):
        centre = ratio
        for offset in offsets:
            tried = (centre + offset).clamp(0.02, 1)
            candidate = grid(low * tried, high * tried, format, name, best.step)
            its_error = squared_error(weight, candidate, unit, format, importance)
            better = its_error < error
            best = merged(better, candidate, best)
            error = torch.where(better, its_error, error)
            ratio = torch.where(better, tried, ratio)
    return best
