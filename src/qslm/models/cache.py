"""A KV cache whose keys are integers, for networks of `transformers`, which this file needs.

Keys are rounded behind RoPE as in QuaRot (Ashkboos et al., NeurIPS 2024): each head is turned by a Hadamard matrix,
which the query's turn undoes in their product, so that no channel stands out; then affine, with a step and a zero point
for each token and head. The range includes 0, so that a zero point is a code of b bits; nothing is clipped (derived):

    s = (max - min) / (2^b - 1),  z = round(-min / s),  k = (clip(round(x / s) + z, 0, 2^b - 1) - z) s

Values come as what `v_proj` fires, which is on a grid already; they are kept as they come. The tensors here hold the
numbers that these integers stand for, keys turned back, so that attention runs as it is.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from qslm.models.hadamard import Rotation

_TINY = torch.finfo(torch.float32).tiny


class IntegerCache(DynamicCache):  # type: ignore[misc]
    """Keys rounded to `bits` bits as they come in, so also those of the same pass are seen as the cache holds them."""

    def __init__(self, config: Any, bits: int) -> None:
        super().__init__(config=config)
        self.bits = bits

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *more: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        """Add keys and values (rows, heads, tokens, head width); all that a query may see, in the same form."""
        turn = Rotation.of(key_states.shape[-1])
        keys = turn.undo(round_keys(turn.apply(key_states), self.bits))
        found: tuple[Tensor, Tensor] = super().update(keys, value_states, layer_idx, *more, **named)
        return found


def round_keys(keys: Tensor, bits: int) -> Tensor:
    """Keys float32 (..., head width), as integers of `bits` bits times one step for each (...)."""
    most = (1 << bits) - 1
    low, high = keys.amin(-1, keepdim=True).clamp_(max=0), keys.amax(-1, keepdim=True).clamp_(min=0)
    step = ((high - low) / most).clamp_(min=_TINY)
    zero = (-low / step).round_()
    return ((keys / step).round_().add_(zero).clamp_(0, most) - zero) * step
