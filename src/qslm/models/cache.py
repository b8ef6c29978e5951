"""A KV cache whose keys are integers, for networks of `transformers`, which this file needs.

Keys of b bits are rounded behind RoPE, as Atom does it (MLSys 2024): affine, a step and a zero point for each token and
head, nothing clipped. As in QuaRot (NeurIPS 2024) the range includes 0, so that a zero point is a code of b bits, too:

    s = (max - min) / (2^b - 1),  z = round(-min / s),  k = (clip(round(x / s) + z, 0, 2^b - 1) - z) s

Values come as what `v_proj` fires, which is on a grid already; they are kept as they come.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

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
        found: tuple[Tensor, Tensor] = super().update(
            round_keys(key_states, self.bits), value_states, layer_idx, *more, **named
        )
        return found


def round_keys(keys: Tensor, bits: int) -> Tensor:
    """Keys float32 (..., head width), as integers of `bits` bits times one step for each (...)."""
    most = (1 << bits) - 1
    low, high = keys.amin(-1, keepdim=True).clamp_(max=0), keys.amax(-1, keepdim=True).clamp_(min=0)
    step = ((high - low) / most).clamp_(min=_TINY)
    zero = (-low / step).round_()
    return ((keys / step).round_().add_(zero).clamp_(0, most) - zero) * step
