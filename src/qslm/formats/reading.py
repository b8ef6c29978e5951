"""Reading files that anyone may have written: sizes, JSON and tensors are checked before they are used."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from qslm.errors import ArtifactError, FormatError
from qslm.formats.layout import METADATA_KEY, StoredTensor

if TYPE_CHECKING:
    import torch

LARGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors library

_REMEDY = "The file is damaged or was not written by qslm: write it again or fetch it again."


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a damaged or missing file causes into one ArtifactError that names it."""
    try:
        yield
    except ArtifactError as error:
        named = str(path) in error.problem
        raise ArtifactError(error.problem if named else f"{path}: {error.problem}", error.remedy) from error
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read: {error.strerror or error}.", "Check the path and its permissions."
        ) from error
    except FormatError as error:
        raise ArtifactError(f"{path}: {error.problem}", _REMEDY) from error
    except SafetensorError as error:
        raise ArtifactError(f"{path} is not a safetensors file: {error}.", _REMEDY) from error


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes."""
    with reading(path):
        size = path.stat().st_size
        if not path.is_file() or size > limit:
            raise ArtifactError(f"{path} is not a file of at most {limit:,} bytes; it has {size:,}.", _REMEDY)
        return path.read_bytes()


def parse_object(text: bytes | str, where: str) -> dict[str, Any]:
    """A JSON object; anything else, NaN and very deep nesting included, raises ArtifactError."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        content = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} is not valid JSON.", _REMEDY) from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{where} is not a JSON object.", _REMEDY)
    return content


def file_digest(path: Path) -> str:
    """The sha256 of a file in hex."""
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_header(path: Path) -> bytes:
    """Length, JSON and padding of a safetensors file, the length checked against the file's."""
    with reading(path), path.open("rb") as file:
        size = path.stat().st_size
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(size - 8, LARGEST_HEADER):
            raise ArtifactError(f"{path} has {size:,} bytes, too few for its header of {length:,} bytes.", _REMEDY)
        return start + file.read(length)


def metadata_of(header: bytes) -> str:
    """The text that `layout.header` was given; raises ArtifactError when there is none."""
    metadata = parse_object(header[8:], "The header").get("__metadata__")
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise ArtifactError("The header has no metadata of qslm.", _REMEDY)
    return text


def read_tensors(path: Path, wanted: Iterable[Iterable[StoredTensor]]) -> "Iterator[dict[str, torch.Tensor]]":
    """The tensors of a file by name, one set of `wanted` at a time; they do not share memory with the file."""
    with reading(path), safe_open(str(path), framework="pt") as file:
        for group in wanted:
            yield {name: file.get_tensor(name).clone() for name, _, _ in group}
