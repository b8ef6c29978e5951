"""A packed matrix as the kernels of `native/products/matrix.h` take it."""

import numpy as np
import torch
from numpy.typing import NDArray

from qslm import _native
from qslm.errors import FormatError
from qslm.formats.format import matrix_shape
from qslm.formats.quantized import QuantizedTensor

_KINDS = {"integer": 0, "sign": 1, "float32": 2, "float16": 3, "bfloat16": 4}  # qslm_kind
_SCALES = {"float16": 0, "float32": 1, "uint8": 2, "power": 3}  # qslm_scale_type


def packed_matrix(tensor: QuantizedTensor, *, by_columns: bool = False) -> _native.Matrix:
    """The matrix (out, in) of a tensor in the bytes that a file would hold of it.

    Raises FormatError for codes of more than 8 bits, which no kernel reads.
    """
    format, (rows, columns) = tensor.format, matrix_shape(tensor.shape)
    if format.kind != "float" and not format.has_tiles:
        raise FormatError(f"No kernel reads {format}.", "Choose at most 8 bits, or a float format.")
    stored = {name.rpartition(".")[2]: _bytes(part) for name, part in tensor.stored(".", by_columns=by_columns).items()}
    empty = np.zeros(0, np.uint8)
    return _native.Matrix(
        kind=_KINDS[format.value_type if format.kind == "float" else format.kind],
        bits=format.bits if format.kind != "float" else 8,
        symmetric=not format.has_zeros,
        by_columns=by_columns,
        scale_type=_SCALES[format.scale_type],
        rows=rows,
        columns=columns,
        group=format.group_size or columns,
        one_scale=format.granularity == "tensor",
        codes=stored[{"integer": "codes", "sign": "signs", "float": ""}[format.kind]],
        scales=stored.get("scales", empty),
        zeros=stored.get("zeros", empty),
        step=stored.get("step", empty),
    )


def round_tokens(tokens: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Tokens (count, width) as int8 (count, stride), 64 a line, with one scale each (count,)."""
    count, width = tokens.shape
    codes = np.zeros((count, -(-width // 64) * 64), np.int8)
    scales = np.array([_native.round_token(one, line) for one, line in zip(tokens, codes, strict=True)], np.float32)
    return codes, scales


def _bytes(part: torch.Tensor) -> NDArray[np.uint8]:
    return part.contiguous().reshape(-1).view(torch.uint8).numpy()
