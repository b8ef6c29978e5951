"""Min-max rounding: the grid spans the whole range of the weights, as in QSLM (arXiv 2601.00679).

The paper's prototype leaves zero out of the range and clips tensors without negative numbers; here the range
always contains zero.
"""

import torch

from qslm.formats import Format
from qslm.formats.quantized import QuantizedTensor
from qslm.quantizers.grid import extremes, grid, quantize_to


def quantize(weight: torch.Tensor, format: Format, *, name: str = "weight") -> QuantizedTensor:
    """Round a finite float32 weight (out, in) into an integer format.

    Raises FormatError, which says `name`, when a scale does not fit into its stored type.
    """
    low, high = extremes(weight, format)
    return quantize_to(weight, grid(low, high, format, name), format)
