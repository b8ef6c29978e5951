"""Causal language models of `transformers`: Llama and what is built as it is."""

from typing import Any

import torch
from torch import Tensor

from qslm.models.pretrained import PretrainedNetwork


class CausalLogits(PretrainedNetwork):
    """Token ids (windows, tokens) in, logits (windows, tokens, vocabulary) out."""

    def forward(self, ids: Tensor) -> Tensor:
        """All logits, without keeping keys and values."""
        logits: Tensor = self.network(input_ids=ids, use_cache=False).logits
        return logits

    @torch.inference_mode()
    def advance(self, ids: Tensor, kept: Any) -> tuple[Tensor, Any]:
        """The logits (vocabulary,) behind the last of ids (tokens,), and the keys and values kept; None at first."""
        device = next(self.parameters()).device
        found = self.network(input_ids=ids[None].to(device), past_key_values=kept, use_cache=True, logits_to_keep=1)
        return found.logits[0, -1], found.past_key_values
