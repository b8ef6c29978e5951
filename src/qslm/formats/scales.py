"""Scales as they are stored: rounded upwards, so that what they were computed from still fits."""

import torch

from qslm.errors import FormatError
from qslm.formats.dtypes import scale_dtype
from qslm.formats.format import Format

_BITS = {torch.float16: torch.int16, torch.float32: torch.int32}
_LARGEST = torch.finfo(torch.float32).max


def stored_scales(exact: torch.Tensor, format: Format, name: str) -> torch.Tensor:
    """Round scales (rows, groups) float64 up to the type in which `format` stores them.

    A scale of 0 (nothing but zeros in the group) becomes 1; a positive one never becomes 0. Raises
    FormatError when a scale is too large for its type or reaches numbers beyond float32.
    """
    rounded = exact.to(scale_dtype(format))
    # The bit patterns of positive floats are in the order of the floats: plus one is the next larger.
    above = (rounded.view(_BITS[scale_dtype(format)]) + 1).view(scale_dtype(format))
    scales = torch.where(rounded.to(torch.float64) < exact, above, rounded)
    scales = torch.where(exact == 0, torch.ones_like(scales), scales)
    if problem := scale_problem(scales, format):
        raise FormatError(f"{name}: {problem}; the largest is {exact.max().item():.3g}.", _remedy(format))
    return scales


def powers_of_two(exponents: torch.Tensor) -> torch.Tensor:
    """2^k, float32 of the shape of the integers k, -126 <= k <= 127; written as bits, so that each is exact."""
    return ((exponents.to(torch.int32) + 127) << 23).view(torch.float32)


def scale_problem(scales: torch.Tensor, format: Format) -> str:
    """Why stored scales are unusable; an empty text when they are positive and reach only float32 numbers."""
    if not bool(torch.isfinite(scales).all()):
        return f"a scale is not a number that {format.scale_type} can hold"
    if not bool((scales > 0).all()):
        return "a scale is not positive"
    if float(scales.max()) * format.span > _LARGEST:
        return "a scale reaches numbers beyond float32"
    return ""


def _remedy(format: Format) -> str:
    if format.scale_type == "float16":
        return f"Store the scales in float32: {format}-s32."
    return "Keep this site in float32."
