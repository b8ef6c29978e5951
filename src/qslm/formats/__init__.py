"""Number formats: what they are, and how tensors in them are stored.

What this file exports loads without PyTorch; tensors themselves are in `quantized`, `packing` and `container`.
"""

from qslm.formats.format import (
    ACTIVATIONS,
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    GROUP_SIZES,
    INTEGER_BITS,
    SIGN,
    Format,
    matrix_shape,
)
from qslm.formats.layout import (
    StoredTensor,
    canonical_json,
    data_bytes,
    entry_bytes,
    header,
    packed_bytes,
    stored_tensors,
)

__all__ = [
    "ACTIVATIONS",
    "BFLOAT16",
    "FLOAT16",
    "FLOAT32",
    "GROUP_SIZES",
    "INTEGER_BITS",
    "SIGN",
    "Format",
    "StoredTensor",
    "canonical_json",
    "data_bytes",
    "entry_bytes",
    "header",
    "matrix_shape",
    "packed_bytes",
    "stored_tensors",
]
