"""Writing safetensors files: the header of `layout`, then the tensors, piece by piece."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TypeAlias

import torch

from qslm.errors import FormatError
from qslm.formats.dtypes import TYPES
from qslm.formats.layout import StoredTensor, header, ordered
from qslm.formats.staging import Staged, commit, stage

_PIECE = 1 << 24  # bytes written at once

Buffer: TypeAlias = bytes | memoryview


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


def _describe(name: str, tensor: torch.Tensor) -> StoredTensor:
    if tensor.dtype not in TYPES:
        raise FormatError(
            f"{name} is of type {tensor.dtype}, which no safetensors file holds.",
            "Convert it to a float or integer type: tensor.float().",
        )
    return name, TYPES[tensor.dtype], tuple(tensor.shape)


def _pieces(described: list[StoredTensor], tensors: Mapping[str, torch.Tensor], metadata: str) -> Iterator[Buffer]:
    yield header(described, metadata)
    for name, _, _ in ordered(described):
        flat = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        for start in range(0, len(flat), _PIECE):
            yield flat[start : start + _PIECE].data
