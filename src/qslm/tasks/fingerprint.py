"""The identity of data: one hash over tensors, texts and numbers, however they are nested."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from qslm.errors import TaskError


def fingerprint(value: Any) -> str:
    """SHA-256, in hexadecimal, over tensors, arrays, texts, numbers, and tuples, lists, dicts and dataclasses
    of them.

    Raises TaskError on anything else: its text might hold an address, which changes from run to run.
    """
    digest = hashlib.sha256()
    for part in _parts(value):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _parts(value: Any) -> Iterable[bytes]:
    if isinstance(value, torch.Tensor):
        yield from _parts(value.detach().cpu().numpy())
    elif isinstance(value, np.ndarray) and value.dtype != object:
        yield f"array {value.dtype.str} {value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, bytes):
        yield b"bytes " + value
    elif value is None or isinstance(value, (str, bool, int, float, np.generic)):
        yield f"{type(value).__name__} {value}".encode("utf-8", "surrogatepass")
    else:
        yield from _nested_parts(value)


def _nested_parts(value: Any) -> Iterable[bytes]:
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        value = sorted(value.items())
    elif not isinstance(value, (tuple, list)):
        raise TaskError(
            f"A batch holds a {type(value).__name__}, which has no fingerprint.",
            "Make batches of tensors, arrays, texts and numbers, or override the task's fingerprint().",
        )
    yield f"{len(value)} parts".encode()
    for item in value:
        yield from _parts(item)
