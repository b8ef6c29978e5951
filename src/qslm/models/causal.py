"""Causal language models of `transformers` (optional) as networks of ours: Llama and what is built as it is."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qslm.errors import CheckpointError
from qslm.models.checkpoint import check_finite
from qslm.models.config import TRANSFORMERS

TYPES = ("llama", "mistral", "qwen2", "gemma")  # `model_type` in config.json; more are a test away
LONGEST_CONTEXT = 1024  # tokens that a window has where nothing else is asked
LARGEST_SIZE = 1 << 20  # of any number of layers, heads or columns that a config may name
INSTALL = "Install what opens it: pip install 'qslm[llama]'."


@dataclass(frozen=True)
class CausalConfig:
    """What `transformers` says of a network, as JSON, and what a task asks of it."""

    network: Mapping[str, Any]

    @property
    def vocabulary_size(self) -> int:
        """Ids that the network knows."""
        return int(self.network["vocab_size"])

    @property
    def context_length(self) -> int:
        """Tokens of a window, where nothing else is asked."""
        return min(int(self.network["max_position_embeddings"]), LONGEST_CONTEXT)

    @property
    def classes(self) -> None:
        """None: it is a language model."""

    def to_dict(self) -> dict[str, Any]:
        """What our `config.json` holds."""
        sizes = {"vocabulary_size": self.vocabulary_size, "context_length": self.context_length}
        return {"architecture": TRANSFORMERS, **sizes, "network": dict(self.network)}

    @classmethod
    def of(cls, config: Any, origin: str) -> "CausalConfig":
        """From a config of `transformers`. Raises CheckpointError as `from_dict` does."""
        values = json.loads(config.to_json_string(use_diff=False))
        for name in ("_name_or_path", "transformers_version"):  # where it lay, and what read it
            values.pop(name, None)
        return cls.from_dict({"network": values}, origin)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], origin: str) -> "CausalConfig":
        """Read `to_dict`'s output. Raises CheckpointError, which says `origin`, on what is not usable."""
        network = values.get("network")
        kind = network.get("model_type") if isinstance(network, dict) else None
        if not isinstance(network, dict) or kind not in TYPES:
            raise CheckpointError(
                f"{origin} describes a network of type {str(kind)[:64]!r}.",
                f"Known are a SpikeGPT and, by transformers, {', '.join(TYPES)} (qslm.models.causal).",
            )
        sizes = {
            name: network.get(name)
            for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                         "max_position_embeddings")
        }  # fmt: skip
        bad = {name: size for name, size in sizes.items() if type(size) is not int or not 0 < size <= LARGEST_SIZE}
        if bad:
            raise CheckpointError(f"{origin} does not describe a network: unusable {bad}.", "Sizes are positive.")
        return cls(network)


class CausalLogits(nn.Module):
    """Token ids (windows, tokens) in, logits (windows, tokens, vocabulary) out.

    key_bits: of the keys that attention sees, rounded as a KV cache holds them (`models.cache`); None leaves them.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.key_bits: int | None = None
        settings: Any = network.config
        settings.return_dict, settings.output_attentions, settings.output_hidden_states = True, False, False

    @property
    def config(self) -> CausalConfig:
        """As the network is now. Raises CheckpointError where it is of no known type."""
        return CausalConfig.of(self.network.config, type(self.network).__name__)

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


def is_attention(module: nn.Module) -> bool:
    """Whether a module has the queries, keys and values of a Llama, and heads of a width `head_dim`."""
    return all(hasattr(module, name) for name in ("q_proj", "k_proj", "v_proj", "head_dim"))


def build(config: CausalConfig, origin: str) -> CausalLogits:
    """A network of a config, with the weights that it is made with. Raises CheckpointError."""
    transformers = _transformers(origin)
    kind = config.network["model_type"]
    fields = {name: value for name, value in config.network.items() if name != "model_type"}
    try:
        made = transformers.AutoConfig.for_model(kind, **fields)
        with torch.random.fork_rng(devices=[]):  # the weights that it is made with are drawn
            network = transformers.AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    except Exception as error:  # whatever a config that is not one makes of the constructors
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{origin} does not describe a network of transformers: {reason}.", "Check it."
        ) from error
    return CausalLogits(network.eval())


def _transformers(origin: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise CheckpointError(f"{origin} needs the package transformers.", INSTALL) from error
    return transformers


def load_causal(state: Mapping[str, Tensor], config: Mapping[str, Any], *, origin: str) -> CausalLogits:
    """A network in evaluation mode from a state dict of `CausalLogits` and `CausalConfig.to_dict`.

    Raises CheckpointError where they do not suit each other, and on NaN or infinity.
    """
    known = CausalConfig.from_dict(config, origin)
    with torch.device("meta"):  # so that a damaged config does not take memory
        made = build(known, origin).state_dict()
    wanted, found = ({name: tuple(one.shape) for name, one in some.items()} for some in (made, state))
    if wanted != found:
        name = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))[0]
        raise CheckpointError(
            f"{origin}: {name} has the shape {found.get(name)}, its config says {wanted.get(name)}.",
            "Fetch or pack it anew.",
        )
    for name, tensor in state.items():
        check_finite(tensor, f"{origin}: {name}")
    model = build(known, origin)
    model.load_state_dict(dict(state))
    return model.requires_grad_(False).eval()
