"""Clip search: the grid spans the part of the range that leaves the smallest squared error.

For every scale, both ends of the range are shrunk by one ratio r; r is searched on a coarse grid (1, 0.9, ...,
0.1) and then on a fine one around the best (steps of 0.02). Scales are rounded to their stored type before an
error is measured, and r = 1 is among the candidates, so that no scale does worse than with min-max. Scales of 8 bits
keep the step of min-max. Where scales are shifts of a row's step, both are searched: every shift of every step in the
octave below that of min-max (derived).
"""

from dataclasses import replace

import torch

from qslm.formats import Format
from qslm.formats.quantized import QuantizedTensor
from qslm.formats.scales import multiples
from qslm.quantizers.grid import Grid, extremes, grid, merged, quantize_to, squared_error

COARSE = tuple(-tenth / 10 for tenth in range(1, 10))
OCTAVE = tuple(2 ** (-eighth / 8) for eighth in range(8))  # of the step that min-max has
FINE = (0.08, 0.06, 0.04, 0.02, -0.02, -0.04, -0.06, -0.08)


def quantize(weight: torch.Tensor, format: Format, *, name: str = "weight") -> QuantizedTensor:
    """Round a finite float32 weight (out, in) into an integer format; raises as min-max does."""
    return quantize_to(weight, search_grid(weight, format, name), format)


def search_grid(weight: torch.Tensor, format: Format, name: str, importance: torch.Tensor | None = None) -> Grid:
    """The grid of the smallest squared error of each scale, for a weight (out, in).

    `importance` (in,) float32 weighs the errors of the columns; without it all count alike.
    """
    if format.scale_type == "power":
        return _search_shifts(weight, format, name, importance)
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


def _search_shifts(weight: torch.Tensor, format: Format, name: str, importance: torch.Tensor | None) -> Grid:
    """The step of each row, and the shift of each of its groups, of the smallest squared error."""
    first = grid(*extremes(weight, format), format, name)
    assert first.step is not None
    unit, steps = first.scales.float(), first.step
    least, chosen = squared_error(weight, first, unit, format, importance), first
    for part in OCTAVE:
        step, best, error = first.step * part, chosen, torch.full_like(least, torch.inf)
        for shift in range(format.most_shift + 1):
            shifts = torch.full_like(unit, shift, dtype=torch.int32)
            candidate = Grid(multiples(shifts, step, format), first.zeros, step)
            its_error = squared_error(weight, candidate, unit, format, importance)
            best = merged(its_error < error, candidate, best)
            error = torch.minimum(error, its_error)
        better = (error * unit**2).sum(1, keepdim=True) < (least * unit**2).sum(1, keepdim=True)
        chosen, steps = merged(better, best, chosen), torch.where(better, step, steps)
        least = torch.where(better, error, least)
    return replace(chosen, step=steps)
