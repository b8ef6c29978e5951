"""GPTQ (Frantar et al., ICLR 2023): every column makes up for the rounding errors of the columns before it.

The error that counts is that of the outputs, E |(W - W_hat) x|^2 over the inputs x that the matrix really sees. Columns
are rounded one after the other, those of the largest inputs first (act-order); what a column is off is spread over the
columns that are still to come by the inverse of the damped Hessian H = E[x x^T] + d I. Scales and zero points are those
that clip search finds for the weight as it is, so groups stay where they are in whatever order ("static groups"); it
weighs the error of a column by the mean square of its input (derived: the paper's are those of min-max).
"""

from functools import lru_cache

import torch

from qslm import _native
from qslm.errors import FormatError
from qslm.formats import Format
from qslm.formats.dtypes import code_dtype
from qslm.formats.quantized import QuantizedTensor
from qslm.quantizers.clip import search_grid
from qslm.quantizers.grid import on_grid
from qslm.quantizers.statistics import InputStatistics

DAMPING = 0.01  # of the mean of the Hessian's diagonal
HARDER = 10.0  # times the damping, where the Hessian cannot be inverted all the same
MOST_DAMPING = 1.0


def quantize(weight: torch.Tensor, format: Format, *, name: str = "weight", inputs: InputStatistics) -> QuantizedTensor:
    """Round a finite float32 weight (out, in) into an integer format.

    The weights of an input that is never anything but 0 are rounded as they are. Raises FormatError, which says
    `name`, where the statistics are of another width or not finite, and as min-max does.
    """
    rows, columns = weight.shape
    inputs.check(columns, name)
    order, factor = _ordered(inputs, name)
    on = search_grid(weight, format, name, inputs.importance)
    scales, zeros = (part.float().expand(rows, -1).contiguous() for part in (on.scales, on.zeros))
    group = torch.arange(columns) // format.group_size if format.group_size else torch.zeros(columns)
    found = torch.empty(rows, columns, dtype=torch.int32)
    _native.gptq(
        *(weight[:, order].contiguous(), factor, scales, zeros, group[order].to(torch.int32)),
        *(format.lowest, format.highest, found, torch.get_num_threads()),
    )
    codes = torch.empty(rows, columns, dtype=code_dtype(format))
    codes[:, order] = found.to(codes.dtype)
    return on_grid(codes, on, format)


@lru_cache(maxsize=2)  # one matrix is rounded into many formats, one after the other, plain and scaled
def _ordered(inputs: InputStatistics, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The columns, those of the largest inputs first, and the factor of the Hessian in that order."""
    moment = inputs.moment.double()
    order = torch.argsort(moment.diagonal(), descending=True, stable=True)
    return order, _factor(moment[order][:, order], name)


def _factor(hessian: torch.Tensor, name: str) -> torch.Tensor:
    """U (in, in) float32, upper triangular, with U^T U the inverse of the damped Hessian.

    The damping grows until the Hessian can be inverted: few inputs make it singular.
    """
    diagonal = hessian.diagonal()
    mean = float(diagonal.mean())
    if mean <= 0:
        return torch.eye(len(hessian))
    damping = DAMPING
    while damping <= MOST_DAMPING:
        # Beside the damping, an input that is always 0 gets the mean: nothing is known of it.
        lower, singular = torch.linalg.cholesky_ex(hessian + torch.diag(mean * (damping + (diagonal <= 0))))
        if not int(singular):
            upper, singular = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            factor = upper.float().contiguous()
            if not int(singular) and bool(torch.isfinite(factor).all()) and bool((factor.diagonal() > 0).all()):
                return factor
        damping *= HARDER
    raise FormatError(f"{name}: the Hessian of its inputs cannot be inverted.", "Round it by another quantizer: clip.")
