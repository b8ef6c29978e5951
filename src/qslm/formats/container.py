"""Writing safetensors files whose bytes are known before any weight is (the format: huggingface/safetensors).

Layout: header length as 8 bytes little-endian, header as JSON padded with spaces to 8 bytes, then the data
without gaps, larger types first and by name within a type, so that equal contents give equal files.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import IO, TypeAlias

import torch

from qslm.errors import FormatError
from qslm.formats.quantized import StoredTensor
from qslm.formats.staging import Staged, commit, stage

METADATA_KEY = "qslm"

_SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_TYPES = {
    torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.int32: "I32", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_PIECE = 1 << 24  # bytes written at once

Buffer: TypeAlias = bytes | memoryview


def canonical_json(value: object) -> str:
    """JSON in one spelling: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def data_bytes(stored: StoredTensor) -> int:
    """How many bytes the numbers of one stored tensor take."""
    return _SIZES[stored[1]] * prod(stored[2])


def header(tensors: Iterable[StoredTensor], metadata: str) -> bytes:
    """The first bytes of the file that holds `tensors`: length, JSON, padding.

    Raises FormatError when two tensors have one name.
    """
    entries: dict[str, object] = {"__metadata__": {METADATA_KEY: metadata}} if metadata else {}
    offset = 0
    for stored in _ordered(tensors):
        name, dtype, shape = stored
        if name in entries or name == "__metadata__":
            raise FormatError(f"The file would hold two tensors named {name!r}.", "Rename one in the network.")
        end = offset + data_bytes(stored)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: str = "") -> str:
    """Write a safetensors file and return its sha256 in hex; it appears under `path` whole or not at all.

    Raises ArtifactError when it cannot be written, FormatError for types that safetensors does not have.
    """
    staged, digest = stage_tensors(path, tensors, metadata)
    commit([staged])
    return digest


def stage_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: str) -> tuple[Staged, str]:
    """Write a safetensors file beside `path`, one tensor after the other; the staged file and its sha256."""
    described = [_describe(name, tensor) for name, tensor in tensors.items()]
    digest = hashlib.sha256()

    def content(file: IO[bytes]) -> None:
        for piece in _pieces(described, tensors, metadata):
            digest.update(piece)
            file.write(piece)

    return stage(path, content), digest.hexdigest()


def _ordered(tensors: Iterable[StoredTensor]) -> list[StoredTensor]:
    return sorted(tensors, key=lambda stored: (-_SIZES[stored[1]], stored[0]))


def _describe(name: str, tensor: torch.Tensor) -> StoredTensor:
    if tensor.dtype not in _TYPES:
        raise FormatError(
            f"{name} is of type {tensor.dtype}, which no safetensors file holds.",
            "Convert it to a float or integer type: tensor.float().",
        )
    return name, _TYPES[tensor.dtype], tuple(tensor.shape)


def _pieces(described: list[StoredTensor], tensors: Mapping[str, torch.Tensor], metadata: str) -> Iterator[Buffer]:
    yield header(described, metadata)
    for name, _, _ in _ordered(described):
        flat = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        for start in range(0, len(flat), _PIECE):
            yield flat[start : start + _PIECE].data
