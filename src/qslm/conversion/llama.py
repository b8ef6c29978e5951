"""Networks of `transformers` that are built as Llama is: where their norms, matrices and heads are."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from qslm.errors import CheckpointError

NORM_OFFSETS = {"llama": 0.0, "mistral": 0.0, "qwen2": 0.0, "gemma": 1.0}  # Gemma scales by 1 + the weight of a norm


@dataclass(frozen=True, eq=False)
class Llama:
    """A network whose blocks are norm, q k v, attention, o; norm, gate and up, product, down; each added to the stream.

    offset: what is added to the weights of its norms.
    """

    network: Any
    offset: float

    @classmethod
    def of(cls, network: nn.Module) -> "Llama":
        """Raises CheckpointError where the type of the network is not known to be built so."""
        kind = getattr(getattr(network, "config", None), "model_type", type(network).__name__)
        if kind not in NORM_OFFSETS:
            raise CheckpointError(
                f"{kind} is not known to be built as Llama is, so nothing says where a rotation folds.",
                f"Convert it without rotation; known are {', '.join(NORM_OFFSETS)} (qslm.conversion.llama).",
            )
        return cls(network, NORM_OFFSETS[kind])

    @property
    def width(self) -> int:
        """Of the stream."""
        return self.network.config.hidden_size

    @property
    def head_width(self) -> int:
        """Of one head of values."""
        config = self.network.config
        return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    @property
    def inner_width(self) -> int:
        """Of the product inside a feed-forward layer."""
        return self.network.config.intermediate_size

    @property
    def embedding(self) -> nn.Embedding:
        """Ids to the stream."""
        return self.network.model.embed_tokens

    @property
    def head(self) -> nn.Linear:
        """The stream to logits."""
        return self.network.lm_head

    @property
    def blocks(self) -> Iterable[Any]:
        """In order."""
        return self.network.model.layers

    def readers(self) -> Iterator[tuple[Any, tuple[nn.Linear, ...]]]:
        """Every norm, and the matrices that read the stream behind it."""
        for block in self.blocks:
            attention, mlp = block.self_attn, block.mlp
            yield block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)
            yield block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)
        yield self.network.model.norm, (self.head,)

    def writers(self) -> Iterator[nn.Linear]:
        """The matrices that add to the stream."""
        for block in self.blocks:
            yield block.self_attn.o_proj
            yield block.mlp.down_proj

    def values(self) -> Iterator[tuple[nn.Linear, nn.Linear]]:
        """The matrix of values of every block, and the one that reads their mixture."""
        for block in self.blocks:
            yield block.self_attn.v_proj, block.self_attn.o_proj
