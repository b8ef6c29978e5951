"""The grid of an integer format: its scales and zero points, and rounding to it.

Weights are seen as `(rows, groups, numbers of one scale)`, the last group padded with zeros, which change
neither a range that has to contain zero nor an error.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from qslm.formats import Format
from qslm.formats.dtypes import code_dtype
from qslm.formats.quantized import QuantizedTensor, part_of, row_chunks
from qslm.formats.scales import scale_step, stored_scales


@dataclass(frozen=True, eq=False)
class Grid:
    """scales (rows, groups), step (1,) of 8-bit scales, and zeros (rows, groups) as in a QuantizedTensor.

    Symmetric formats have zeros, too: integers that are 0.
    """

    scales: torch.Tensor
    zeros: torch.Tensor
    step: torch.Tensor | None = None


def extremes(weight: torch.Tensor, format: Format) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest and the highest number of every scale, zero included: two (rows, groups) float64."""
    lows, highs = zip(*(torch.aminmax(part, dim=-1) for _, part in parts(weight, format)), strict=True)
    low, high = torch.cat(lows).double(), torch.cat(highs).double()
    if format.granularity == "tensor":
        low, high = low.amin(0, keepdim=True), high.amax(0, keepdim=True)
    return low.clamp(max=0), high.clamp(min=0)


def grid(low: torch.Tensor, high: torch.Tensor, format: Format, name: str, step: torch.Tensor | None = None) -> Grid:
    """The grid over [low, high], float64 (rows, groups) with low <= 0 <= high.

    Affine:     s = (high - low) / (2^b - 1),  z = round(-low / s)
    Symmetric:  s = max(high / (2^(b-1) - 1), -low / 2^(b-1)),  z = 0
                1 bit has no code above 0: s = -low, and positive numbers become 0.
    s is rounded up to its stored type before z is computed, so a number of the range is at most s / 2 off. Scales of
    8 bits are multiples of `step`; where it is not given, of the one that reaches the largest of them.
    """
    if format.symmetric:
        up = high / format.highest if format.highest else torch.zeros_like(high)
        exact = torch.maximum(up, low / format.lowest)
    else:
        exact = (high - low) / format.highest
    step = scale_step(exact, format) if step is None else step
    scales = stored_scales(exact, format, name, step)
    if format.symmetric:
        return Grid(scales, torch.zeros_like(low, dtype=code_dtype(format)), step)
    zeros = torch.round(-low / scales.double()).clamp(0, format.highest)
    return Grid(scales, zeros.to(code_dtype(format)), step)


def quantize_to(weight: torch.Tensor, on: Grid, format: Format) -> QuantizedTensor:
    """Round a weight (out, in) to the nearest points of a grid."""
    codes = torch.empty(weight.shape, dtype=code_dtype(format), device=weight.device)
    for rows, part in parts(weight, format):
        scales, zeros = beside(on, rows)
        rounded = round_to(part, scales, zeros, format).to(code_dtype(format))
        count = rows.stop - rows.start
        codes[rows] = rounded.reshape(count, -1)[:, : weight.shape[1]]
    return on_grid(codes, on, format)


def on_grid(codes: torch.Tensor, on: Grid, format: Format) -> QuantizedTensor:
    """The weight (out, in) that has these codes on a grid."""
    points = on.zeros if format.has_zeros else None
    return QuantizedTensor(format, tuple(codes.shape), codes=codes, scales=on.scales, zeros=points, step=on.step)


def squared_error(
    weight: torch.Tensor, on: Grid, unit: torch.Tensor, format: Format, importance: torch.Tensor | None = None
) -> torch.Tensor:
    """The sum over each scale of importance ((weight - rounded) / unit)^2, (rows, groups) float64.

    `unit` (rows, groups) float32 keeps the squares of very large and very small weights within float32. `importance`
    (in,) float32 weighs the columns, which are all alike without it.
    """
    errors = []
    weighing = parts((weight.new_ones(1) if importance is None else importance).expand(weight.shape), format)
    for (rows, part), (_, weighed) in zip(parts(weight, format), weighing, strict=True):
        scales, zeros = beside(on, rows)
        steps = round_to(part, scales, zeros, format) - zeros
        difference = (part - steps * scales) / part_of(unit, rows)[..., None]
        square = difference.square_()
        errors.append((square if importance is None else square.mul_(weighed)).sum(-1).double())
    return total(errors, format)


def total(found: list[torch.Tensor], format: Format) -> torch.Tensor:
    """What was found of the numbers of each scale, part by part, for all of them: (rows, groups)."""
    joined = torch.cat(found)
    return joined.sum(0, keepdim=True) if format.granularity == "tensor" else joined


def merged(where: torch.Tensor, one: Grid, other: Grid) -> Grid:
    """The scales and zero points of `one` where (rows, groups) says so, else those of `other`; they share the step."""
    return Grid(torch.where(where, one.scales, other.scales), torch.where(where, one.zeros, other.zeros), one.step)


def round_to(part: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, format: Format) -> torch.Tensor:
    """The codes of numbers that lie beside their scales and zero points, as float32."""
    return torch.round(part / scales).add_(zeros).clamp_(format.lowest, format.highest)


def beside(on: Grid, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points of some rows as float32 (rows, groups, 1)."""
    return part_of(on.scales, rows).float()[..., None], part_of(on.zeros, rows).float()[..., None]


def parts(weight: torch.Tensor, format: Format) -> Iterator[tuple[slice, torch.Tensor]]:
    """Some rows of a weight at a time as (rows, groups, numbers of one scale)."""
    size = format.group_size
    for rows in row_chunks(*weight.shape):
        part = weight[rows]
        if format.granularity == "tensor":
            yield rows, part.reshape(1, 1, -1)
        elif format.granularity == "row":
            yield rows, part[:, None, :]
        else:
            padded = torch.nn.functional.pad(part, (0, -part.shape[1] % size))
            yield rows, padded.reshape(part.shape[0], -1, size)
