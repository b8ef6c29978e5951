"""Networks of `transformers` (optional) as networks of ours: the kinds that are known, and what is said of one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from qslm.errors import CheckpointError
from qslm.models.config import TRANSFORMERS

LONGEST_CONTEXT = 1024  # tokens that a window of text has where nothing else is asked
LARGEST_SIZE = 1 << 20  # of any number of layers, heads, classes or columns that a config may name


@dataclass(frozen=True)
class Kind:
    """Networks that are used in one way: `model_type` in config.json, and the fields that size them.

    ending: of the class that has their head, and of the class of `transformers` that makes any of them.
    """

    name: str
    ending: str
    sizes: Mapping[str, tuple[str, ...]]

    @property
    def maker(self) -> str:
        """The class of `transformers` that makes one by its config."""
        return f"AutoModel{self.ending}"


_ANY = ("vocab_size", "max_position_embeddings")
_SIZES = (*_ANY, "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
CAUSAL = Kind("causal language model", "ForCausalLM", dict.fromkeys(("llama", "mistral", "qwen2", "gemma"), _SIZES))
ENCODER = Kind(
    "sequence classifier",
    "ForSequenceClassification",
    {"bert": (*_SIZES, "type_vocab_size"), "distilbert": (*_ANY, "dim", "n_layers", "n_heads", "hidden_dim")},
)
KINDS = (CAUSAL, ENCODER)  # more types are a test away


@dataclass(frozen=True)
class NetworkConfig:
    """What `transformers` says of a network, as JSON, and what a task asks of it."""

    network: Mapping[str, Any]

    @property
    def kind(self) -> Kind:
        """How it is used."""
        return next(kind for kind in KINDS if self.network["model_type"] in kind.sizes)

    @property
    def vocabulary_size(self) -> int:
        """Ids that the network knows."""
        return int(self.network["vocab_size"])

    @property
    def context_length(self) -> int:
        """Tokens of a window, where nothing else is asked; of an encoder all that its table of positions has."""
        positions = int(self.network["max_position_embeddings"])
        return positions if self.kind is ENCODER else min(positions, LONGEST_CONTEXT)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of its classes in the order of the logits; none of a language model."""
        named = self.network["id2label"] if self.kind is ENCODER else {}
        return tuple(named[str(place)] for place in range(len(named)))

    @property
    def classes(self) -> int | None:
        """Of a classifier; None for a language model."""
        return len(self.labels) or None

    def to_dict(self) -> dict[str, Any]:
        """What our `config.json` holds."""
        sizes = {"vocabulary_size": self.vocabulary_size, "context_length": self.context_length}
        classes = {"classes": self.classes, "labels": list(self.labels)} if self.labels else {}
        return {"architecture": TRANSFORMERS, **sizes, **classes, "network": dict(self.network)}

    @classmethod
    def of(cls, config: Any, origin: str) -> "NetworkConfig":
        """From a config of `transformers`. Raises CheckpointError as `from_dict` does."""
        values = json.loads(config.to_json_string(use_diff=False))
        for name in ("_name_or_path", "transformers_version"):  # where it lay, and what read it
            values.pop(name, None)
        return cls.from_dict({"network": values}, origin)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], origin: str) -> "NetworkConfig":
        """Read `to_dict`'s output. Raises CheckpointError, which says `origin`, on what is not usable."""
        network = values.get("network")
        model_type = network.get("model_type") if isinstance(network, dict) else None
        known = [name for kind in KINDS for name in kind.sizes]
        if not isinstance(network, dict) or model_type not in known:
            raise CheckpointError(
                f"{origin} describes a network of type {str(model_type)[:64]!r}.",
                f"Known are a SpikeGPT and, by transformers, {', '.join(known)}; register another in KINDS of "
                "qslm.models.pretrained, if its layers are torch.nn.Linear.",
            )
        found = cls(network)
        _check_sizes(network, found.kind.sizes[model_type], origin)
        if found.kind is ENCODER:
            _check_classifier(network, origin)
        return found


def _check_sizes(network: Mapping[str, Any], names: tuple[str, ...], origin: str) -> None:
    bad = {name: size for name in names if type(size := network.get(name)) is not int or not 0 < size <= LARGEST_SIZE}
    if bad:
        raise CheckpointError(f"{origin} does not describe a network: unusable {bad}.", "Sizes are positive.")


def _check_classifier(network: Mapping[str, Any], origin: str) -> None:
    """Raise CheckpointError unless the largest of two or more logits, each with its name, is the answer."""
    labels, problem = network.get("id2label"), network.get("problem_type")
    if network.get("is_decoder"):
        raise CheckpointError(f"{origin} describes a decoder (is_decoder).", "Give an encoder that classifies.")
    if not isinstance(labels, dict) or set(labels) != set(map(str, range(len(labels)))):
        raise CheckpointError(f"{origin} does not name its classes from 0 on: id2label.", "Name them.")
    if not all(isinstance(name, str) for name in labels.values()) or not 2 <= len(labels) <= LARGEST_SIZE:
        raise CheckpointError(
            f"{origin} names {len(labels)} classes: id2label.", "Give a classifier of 2 classes or more, by names."
        )
    if problem not in (None, "single_label_classification"):
        raise CheckpointError(
            f"{origin} describes a classifier for {str(problem)[:64]!r}, where the largest logit is not the answer.",
            "Give one whose classes exclude each other.",
        )


class PretrainedNetwork(nn.Module):
    """A network of `transformers` as one of ours: token ids in, logits out, and a config that says what it is."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        settings: Any = network.config
        settings.return_dict, settings.output_attentions, settings.output_hidden_states = True, False, False

    @property
    def config(self) -> NetworkConfig:
        """As the network is now. Raises CheckpointError where it is of no known type."""
        return NetworkConfig.of(self.network.config, type(self.network).__name__)
