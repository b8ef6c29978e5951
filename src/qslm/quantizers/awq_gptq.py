"""GPTQ on the columns that AWQ has scaled: the scales choose the grid, and what rounding is off is still made up for.

Q of W_hat = Q(W diag(s)) diag(1/s) is GPTQ with the moment of the scaled inputs, diag(1/s) E[x x^T] diag(1/s), on the
grid that clip search finds for W diag(s). Lin et al. join the two methods for 2 bits; how is derived.
"""

from dataclasses import replace

from torch import Tensor

from qslm.formats import Format
from qslm.formats.quantized import QuantizedTensor
from qslm.formats.scales import powers_of_two
from qslm.quantizers import gptq
from qslm.quantizers.statistics import InputStatistics


def quantize(weight: Tensor, format: Format, *, name: str = "weight", inputs: InputStatistics) -> QuantizedTensor:
    """Round a finite float32 weight (out, in) into an integer format; without exponents as GPTQ does.

    Raises as GPTQ does.
    """
    inputs.check(weight.shape[1], name)
    if inputs.exponents is None:
        return gptq.quantize(weight, format, name=name, inputs=inputs)
    rounded = gptq.quantize(weight * powers_of_two(inputs.exponents), format, name=name, inputs=inputs.scaled)
    return replace(rounded, exponents=inputs.exponents)
