"""The types of PyTorch that hold the numbers of a format, and their names in safetensors."""

import torch

from qslm.formats.format import Format

TYPES = {
    torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.int32: "I32", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip

_FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SCALES = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.float32, "power": torch.float32}


def scale_dtype(format: Format) -> torch.dtype:
    """The type of scales in memory: that in which they are stored, and float32 for the multiples of a step."""
    return _SCALES[format.scale_type]


def value_dtype(format: Format) -> torch.dtype:
    """The type in which a float format stores its numbers."""
    return _FLOATS[format.value_type]


def code_dtype(format: Format) -> torch.dtype:
    """The smallest type of PyTorch that holds the codes; a sign is 0 or 1."""
    if format.bits <= 8:
        return torch.int8 if format.symmetric else torch.uint8
    return torch.int16 if format.symmetric or format.bits < 16 else torch.int32
