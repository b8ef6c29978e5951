"""Number formats: what they are, what tensors in them look like, and how they are stored."""

from qslm.formats.container import canonical_json, data_bytes, header
from qslm.formats.format import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    GROUP_SIZES,
    INTEGER_BITS,
    SIGN,
    Format,
    matrix_shape,
)
from qslm.formats.packing import pack, packed_bytes, unpack
from qslm.formats.quantized import QuantizedTensor, StoredTensor, stored_tensors

__all__ = [
    "BFLOAT16",
    "FLOAT16",
    "FLOAT32",
    "GROUP_SIZES",
    "INTEGER_BITS",
    "SIGN",
    "Format",
    "QuantizedTensor",
    "StoredTensor",
    "canonical_json",
    "data_bytes",
    "header",
    "matrix_shape",
    "pack",
    "packed_bytes",
    "stored_tensors",
    "unpack",
]
