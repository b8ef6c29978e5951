"""AWQ (Lin et al., MLSys 2024): columns of large inputs are rounded as if they were larger, so that they lose less.

The rounded weight is W_hat = Q(W diag(s)) diag(1/s), and the inputs become x / s in what makes them (`fold`). The
scales are s_j = 2^k_j: the paper's are any real numbers, but a power of two folds without any rounding (derived). So is
the range, -8 <= k <= 0: what makes the inputs only ever grows, so that no small float16 scale of it loses a bit.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from qslm.formats import Format
from qslm.formats.quantized import QuantizedTensor
from qslm.formats.scales import powers_of_two
from qslm.quantizers.clip import search_grid
from qslm.quantizers.grid import quantize_to
from qslm.quantizers.statistics import InputStatistics

ALPHAS = tuple(eighth / 8 for eighth in range(1, 9))  # beside 0, which scales nothing
FARTHEST = 4  # of an exponent from the mean one
JUDGE = Format.parse("int3-row-s32")  # by which the exponents of all formats are chosen
ROWS = 512  # of a matrix that are looked at, at most


def quantize(weight: Tensor, format: Format, *, name: str = "weight", inputs: InputStatistics) -> QuantizedTensor:
    """Round a finite float32 weight (out, in) into an integer format, its columns scaled where there are exponents.

    Clip search weighs the error of a column by the mean square of its input. Raises FormatError, which says `name`,
    where the statistics are of another width or not finite, and as min-max does.
    """
    inputs.check(weight.shape[1], name)
    if inputs.exponents is None:
        return _clipped(weight, format, name, inputs)
    scaled = _clipped(weight * powers_of_two(inputs.exponents), format, name, inputs.scaled)
    return replace(scaled, exponents=inputs.exponents)


def _clipped(weight: Tensor, format: Format, name: str, inputs: InputStatistics) -> QuantizedTensor:
    return quantize_to(weight, search_grid(weight, format, name, inputs.importance), format)


def search_exponents(weights: Sequence[Tensor], moments: Sequence[Tensor], degree: int = 1) -> Tensor | None:
    """The exponents k (in,) int8 that the columns of float weights (out, in) with one source of inputs share.

    None where no scaling is better than none, where nothing is known of the inputs, or where numbers are not finite,
    which rounding refuses by name.

    s = (E x_j^2)^(alpha / 2), over the inputs of all of them, its geometric mean 1, rounded to a power of 2^degree. Of
    ALPHAS the one is taken that leaves the least output error, summed over the weights,

    tr((W_hat - W) M (W_hat - W)^T),  M = E[x x^T] (in, in),

    of the format JUDGE and at most ROWS rows of each, evenly spaced. Derived: the paper searches anew for every
    format; here all formats share the exponents, for a channel has one scale whatever its readers are stored in. An
    input that is always 0 counts as the least of the others.
    """
    squares = torch.stack([moment.diagonal().double() for moment in moments]).mean(0)
    known = all(bool(torch.isfinite(one).all()) for one in (*weights, *moments))
    if not known or not bool((squares > 0).any()):
        return None
    logarithms = squares.clamp(min=float(squares[squares > 0].min())).log2()
    some = [weight[:: -(-len(weight) // ROWS)].float() for weight in weights]
    best, least = None, _error(some, moments, None)
    for alpha in ALPHAS:
        wanted = alpha / 2 * (logarithms - logarithms.mean()) / degree
        near = (wanted.round() * degree).clamp(-FARTHEST, FARTHEST)
        exponents = (near - near.max()).to(torch.int8)
        error = _error(some, moments, exponents)
        if error < least:
            best, least = exponents, error
    return best


def _error(weights: Sequence[Tensor], moments: Sequence[Tensor], exponents: Tensor | None) -> float:
    """The summed output error of weights whose columns are scaled, or are not."""
    total = 0.0
    for weight, moment in zip(weights, moments, strict=True):
        rounded = quantize(weight, JUDGE, inputs=InputStatistics(moment, 1, exponents))
        off = (rounded.dequantize() - weight).double()
        total += float((off @ moment.double()).mul_(off).sum())
    return total
