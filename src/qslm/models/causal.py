"""Language models of `transformers` as networks of ours."""

from torch import Tensor, nn


class CausalLogits(nn.Module):
    """Token ids (windows, tokens) in, logits (windows, tokens, vocabulary) out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor) -> Tensor:
        """All logits, without keeping keys and values."""
        logits: Tensor = self.network(input_ids=ids, use_cache=False).logits
        return logits
