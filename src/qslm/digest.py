"""The bits of tensors as hashlib sees them."""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor


class Digest(Protocol):
    """What `hashlib.sha256()` returns, as far as it is fed here."""

    def update(self, data: memoryview, /) -> None: ...  # noqa: D102


def update_digest(digest: Digest, tensors: Iterable[Tensor]) -> None:
    """Feed the bits of tensors to a hashlib digest, in order; names, types and shapes are the caller's matter."""
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
