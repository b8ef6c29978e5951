"""Half-quadratic rounding, after HQQ (Badri and Shaji 2023): the grid of the least |W - W_hat|^p, p < 1, without data.

Few large errors are let be, so that the many others become small. With E the errors that are let be, the two steps are
solved in turn:  E = shrink(W - W_hat), and the scale s that brings (q - z) s closest to W - E. HQQ moves a real zero
point; here zero points are integers, so that zero stays representable, and that of min-max and both of its neighbours
are tried (derived).
Errors are measured in steps of the grid, so that weights of any size are rounded alike (derived). Scales of 8 bits keep
the step of min-max, so none becomes larger than the largest was.
"""

from dataclasses import replace

import torch

from qslm.formats import Format
from qslm.formats.quantized import QuantizedTensor, part_of
from qslm.formats.scales import stored_scales
from qslm.quantizers.grid import Grid, beside, extremes, grid, merged, parts, quantize_to, round_to, total

POWER = 0.7
ROUNDS = 20
SHIFTS = (0, -1, 1)  # of the zero points of min-max
BETA, KAPPA = 10.0, 1.01  # of the shrinking, and its growth from round to round


def quantize(weight: torch.Tensor, format: Format, *, name: str = "weight") -> QuantizedTensor:
    """Round a finite float32 weight (out, in) into an integer format; raises as min-max does."""
    first = grid(*extremes(weight, format), format, name)
    unit = first.scales.float()
    best, error = first, _error(weight, first, unit, format)
    for shift in SHIFTS if format.has_zeros else (0,):
        zeros = (first.zeros.int() + shift).clamp(format.lowest, format.highest).to(first.zeros.dtype)
        now, beta = replace(first, zeros=zeros), BETA
        for _ in range(ROUNDS):
            fitted = _fitted(weight, now, beta, format)
            now = replace(now, scales=stored_scales(fitted, format, name, now.step))
            found = _error(weight, now, unit, format)
            best, error = merged(found < error, now, best), torch.minimum(found, error)
            beta *= KAPPA
    return quantize_to(weight, best, format)


def _fitted(weight: torch.Tensor, on: Grid, beta: float, format: Format) -> torch.Tensor:
    """The scales (rows, groups) float64 that bring the grid closest to what is left without the errors let be."""
    above, below = [], []
    for rows, part in parts(weight, format):
        scales, zeros = beside(on, rows)
        steps = round_to(part, scales, zeros, format) - zeros
        off = part / scales - steps
        shrunk = torch.sign(off) * torch.relu(off.abs() - off.abs().clamp(min=1e-8) ** (POWER - 1) / beta)
        above.append(((steps + off - shrunk) * steps).sum(-1).double())
        below.append(steps.square().sum(-1).double())
    products, squares = total(above, format), total(below, format)
    factor = torch.where(squares > 0, products / squares.clamp(min=1), torch.ones_like(products))
    return on.scales.double() * factor.clamp(0.1, 2)


def _error(weight: torch.Tensor, on: Grid, unit: torch.Tensor, format: Format) -> torch.Tensor:
    """The sum over each scale of |(weight - rounded) / unit|^p, (rows, groups) float64."""
    errors = []
    for rows, part in parts(weight, format):
        scales, zeros = beside(on, rows)
        steps = round_to(part, scales, zeros, format) - zeros
        errors.append(((part - steps * scales) / part_of(unit, rows)[..., None]).abs().pow(POWER).sum(-1).double())
    return total(errors, format)
