"""Scales as they are stored: rounded upwards, so that what they were computed from still fits.

Scales of 8 bits are `code * step` with codes 1 to HIGHEST and one step for the whole tensor, or shifts, `step * 2^code`
with one step a row. In memory they are these products, rounded to float32, from which the codes follow again.
"""

import torch

from qslm.errors import FormatError
from qslm.formats.dtypes import scale_dtype
from qslm.formats.format import Format

HIGHEST = 255

_BITS = {torch.float16: torch.int16, torch.float32: torch.int32}
_LARGEST = torch.finfo(torch.float32).max


def stored_scales(exact: torch.Tensor, format: Format, name: str, step: torch.Tensor | None = None) -> torch.Tensor:
    """Round scales (rows, groups) float64 up to what `format` stores.

    A scale of 0 (nothing but zeros in the group) becomes 1; a positive one never becomes 0. Scales of 8 bits need the
    `step` float32 that `scale_step` finds: 0 becomes the step, and what is beyond HIGHEST steps, or the most shift,
    becomes these.
    Raises FormatError when a scale is too large for its type or reaches numbers beyond float32.
    """
    scales = _rounded_up(exact, scale_dtype(format))
    if format.has_step:
        assert step is not None
        # Rounding is monotone, so a product that is not below a float32 number is not below it once it is float32 too.
        ratios = scales.double() / step.double()
        if format.scale_type == "power":
            scales = multiples(_shifts_up(ratios).clamp_(0, format.most_shift), step, format)
        else:
            scales = multiples(torch.ceil(ratios).clamp(1, HIGHEST), step, format)
    else:
        scales = torch.where(exact == 0, torch.ones_like(scales), scales)
    if problem := scale_problem(scales, format):
        raise FormatError(f"{name}: {problem}; the largest is {exact.max().item():.3g}.", _remedy(format))
    return scales


def scale_step(exact: torch.Tensor, format: Format) -> torch.Tensor | None:
    """The step (1,) float32 with which 8 bits reach the largest of the scales (rows, groups) float64; else None.

    step = max(exact) / HIGHEST, rounded up; 1 where all scales are 0. Of shifts the steps (rows, 1) of the finest group
    of each row, but for what the most shift does not reach from there.
    """
    if not format.has_step:
        return None
    if format.scale_type == "power":
        largest = _rounded_up(exact.amax(1, keepdim=True), torch.float32)
        finest = exact.where(exact > 0, torch.inf).amin(1, keepdim=True)
        step = _rounded_up(torch.maximum(finest, largest.double() / 2**format.most_shift), torch.float32)
        return torch.where(largest == 0, torch.ones_like(step), step)
    largest = _rounded_up(exact.max().reshape(1), torch.float32)
    step = _rounded_up(largest.double() / HIGHEST, torch.float32)
    return torch.where(largest == 0, torch.ones_like(step), step)


def multiples(codes: torch.Tensor, step: torch.Tensor, format: Format) -> torch.Tensor:
    """The scales (rows, groups) float32 that 8-bit codes stand for: code * step, or step * 2^code."""
    return (powers_of_two(codes) if format.scale_type == "power" else codes.to(torch.float32)) * step


def scale_codes(scales: torch.Tensor, step: torch.Tensor, format: Format) -> torch.Tensor:
    """The inverse of `multiples`, as uint8: a product of float32 is off by far less than half a step."""
    ratios = scales.double() / step.double()
    return (_shifts_up(ratios) if format.scale_type == "power" else torch.round(ratios)).to(torch.uint8)


def _shifts_up(ratios: torch.Tensor) -> torch.Tensor:
    """The least k with ratio <= 2^k, int32; ratios are float64."""
    mantissa, power = torch.frexp(ratios)  # 2^(power - 1) <= ratio < 2^power
    return power - (mantissa == 0.5).to(power.dtype)


def powers_of_two(exponents: torch.Tensor) -> torch.Tensor:
    """2^k, float32 of the shape of the integers k, -126 <= k <= 127; written as bits, so that each is exact."""
    return ((exponents.to(torch.int32) + 127) << 23).view(torch.float32)


def scale_problem(scales: torch.Tensor, format: Format) -> str:
    """Why stored scales are unusable; an empty text when they are positive and reach only float32 numbers."""
    if not bool(torch.isfinite(scales).all()):
        return f"a scale is not a number that {str(scales.dtype).removeprefix('torch.')} can hold"
    if not bool((scales > 0).all()):
        return "a scale is not positive"
    if float(scales.max()) * format.span > _LARGEST:
        return "a scale reaches numbers beyond float32"
    return ""


def _rounded_up(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The smallest numbers of a type that are not below `exact`, float64 and not negative."""
    rounded = exact.to(dtype)
    # The bit patterns of positive floats are in the order of the floats: plus one is the next larger.
    above = (rounded.view(_BITS[dtype]) + 1).view(dtype)
    return torch.where(rounded.to(torch.float64) < exact, above, rounded)


def _remedy(format: Format) -> str:
    if format.scale_type == "float16":
        return f"Store the scales in float32: {format}-s32."
    return "Keep this site in float32."
