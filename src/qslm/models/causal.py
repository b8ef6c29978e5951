"""Causal language models of `transformers`: Llama and what is built as it is."""

from typing import Any

import torch
from torch import Tensor, nn

from qslm.models.pretrained import PretrainedNetwork


def is_attention(module: nn.Module) -> bool:
    """Whether a module has the queries, keys and values of a Llama, and heads of a width `head_dim`."""
    return all(hasattr(module, name) for name in ("q_proj", "k_proj", "v_proj", "head_dim"))


class CausalLogits(PretrainedNetwork):
    """Token ids (windows, tokens) in, logits (windows, tokens, vocabulary) out.

    key_bits: of the keys that attention sees, rounded as a KV cache holds them (`models.cache`); None leaves them.
    """

    key_bits: int | None = None

    def forward(self, ids: Tensor) -> Tensor:
        """All logits, without keeping keys and values."""
        logits: Tensor = self.network(input_ids=ids, past_key_values=self._cache(), use_cache=False).logits
        return logits

    @torch.inference_mode()
    def advance(self, ids: Tensor, kept: Any) -> tuple[Tensor, Any]:
        """The logits (vocabulary,) behind the last of ids (tokens,), and the keys and values kept; None at first."""
        device = next(self.parameters()).device
        kept = self._cache() if kept is None else kept
        found = self.network(input_ids=ids[None].to(device), past_key_values=kept, use_cache=True, logits_to_keep=1)
        return found.logits[0, -1], found.past_key_values

    def attentions(self) -> dict[str, Any]:
        """The modules that turn queries, keys and values into their mixture, by path."""
        return {path: module for path, module in self.named_modules() if is_attention(module)}

    def _cache(self) -> Any:
        """An empty cache of integers, or None, which leaves it to `transformers`."""
        if self.key_bits is None:
            return None
        from qslm.models.cache import IntegerCache

        return IntegerCache(self.network.config, self.key_bits)
