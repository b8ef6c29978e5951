"""What a file holds of each tensor and where, known before any weight is. Loads without PyTorch.

Layout of a safetensors file (the format: huggingface/safetensors): header length as 8 bytes little-endian, header as
JSON padded with spaces to a multiple of 64 bytes in all, then the data without gaps: first tensors of a multiple of 64
bytes, then the others; larger types first in both, and by name within a type. So most of what kernels read begins at a
cache line, every tensor where its type may stand, and equal contents give equal files.
"""

import json
from collections.abc import Iterable
from functools import lru_cache
from math import prod
from typing import TypeAlias

from qslm.errors import FormatError
from qslm.formats.format import Format, matrix_shape

StoredTensor: TypeAlias = tuple[str, str, tuple[int, ...]]  # name, type as safetensors writes it, shape

METADATA_KEY = "qslm"

_LINE = 64  # bytes of a cache line

_ENTRY = len('"":{"dtype":"U8","shape":[1],"data_offsets":[12345678,12345678]},')
_SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "uint8": "U8", "power": "U8"}


@lru_cache(maxsize=1 << 16)
def stored_tensors(format: Format, shape: tuple[int, ...], name: str) -> tuple[StoredTensor, ...]:
    """What a file holds of a tensor of `shape`: (name, type, shape) each. Needs no weights.

    int4-g64 of (256, 100) -> codes U8 (12800,), scales F16 (512,), zeros U8 (256,), in the order of `tiles`.
    int4-g64-s8 -> scales U8 (512,), and their step F32 (1,) beside them; int4-sym-g64-p2 -> steps F32 (256, 1).
    """
    if format.kind == "float":
        return ((name, _NAMES[format.value_type], shape),)
    count = prod(shape)
    if format.kind == "sign":
        return ((f"{name}.signs", "U8", (packed_bytes(count, 1),)),)
    rows, columns = matrix_shape(shape)
    grid = format.scale_shape(rows, columns)
    codes = (f"{name}.codes", "U8", (packed_bytes(count, format.bits),))
    scales = (f"{name}.scales", _NAMES[format.scale_type], (prod(grid),))
    step = (f"{name}.step", "F32", format.step_shape(rows))
    zeros = (f"{name}.zeros", "U8", (packed_bytes(prod(grid), format.bits),))
    return codes, scales, *[step] * format.has_step, *[zeros] * format.has_zeros


def packed_bytes(count: int, bits: int) -> int:
    """How many bytes `count` codes of `bits` bits take, without gaps."""
    return (count * bits + 7) // 8


def canonical_json(value: object) -> str:
    """JSON in one spelling: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def data_bytes(stored: StoredTensor) -> int:
    """How many bytes the numbers of one stored tensor take."""
    return _SIZES[stored[1]] * prod(stored[2])


def entry_bytes(stored: StoredTensor) -> int:
    """How many bytes the header has for one stored tensor, but for a few digits of its shape and place."""
    return len(stored[0]) + _ENTRY


def header(tensors: Iterable[StoredTensor], metadata: str) -> bytes:
    """The first bytes of the file that holds `tensors`: length, JSON, padding.

    Raises FormatError when two tensors have one name.
    """
    entries: dict[str, object] = {"__metadata__": {METADATA_KEY: metadata}} if metadata else {}
    offset = 0
    for stored in ordered(tensors):
        name, dtype, shape = stored
        if name in entries or name == "__metadata__":
            raise FormatError(f"The file would hold two tensors named {name!r}.", "Rename one in the network.")
        end = offset + data_bytes(stored)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _LINE)
    return len(text).to_bytes(8, "little") + text


def ordered(tensors: Iterable[StoredTensor]) -> list[StoredTensor]:
    """Tensors as their data follow one another in the file."""
    return sorted(tensors, key=lambda stored: (data_bytes(stored) % _LINE > 0, -_SIZES[stored[1]], stored[0]))
