"""The sizes of a SpikeGPT, and the names and shapes of its tensors, which follow. Loads without PyTorch.

A test holds `tensor_shapes` to what `spikegpt.py` makes: it is said twice so that a budget is refused at once.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from qslm.errors import CheckpointError

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

TRANSFORMERS = "transformers"  # the architecture, in our config.json, of networks that this package builds

_BLOCK_KEY = re.compile(r"blocks\.(\d+)\.")


@dataclass(frozen=True)
class SpikeGPTConfig:
    """Sizes of a SpikeGPT; `classes` is None for a language model."""

    vocabulary_size: int
    width: int
    layers: int
    ffn_width: int
    context_length: int = 1024
    classes: int | None = None
    binary_embedding: bool = True

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` holds."""
        return {"architecture": "spikegpt", **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any], origin: str = "config.json") -> "SpikeGPTConfig":
        """Read `to_dict`'s output; raises CheckpointError, which says `origin`, on a missing or unusable value."""
        fields: dict[str, Any] = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        flag = fields.pop("binary_embedding", True)
        sizes = {name: size for name, size in fields.items() if not (name == "classes" and size is None)}
        bad = {name: size for name, size in sizes.items() if type(size) is not int or not 0 < size < 2**31}
        missing = {"vocabulary_size", "width", "layers", "ffn_width"} - set(sizes)
        if bad or missing or type(flag) is not bool:
            raise CheckpointError(
                f"{origin} does not describe a SpikeGPT: unusable {bad or sorted(missing) or flag!r}.",
                "Each size is a positive integer and binary_embedding is true or false.",
            )
        return cls(**sizes, binary_embedding=flag)


def infer_config(shapes: Shapes, config: Mapping[str, Any], origin: str) -> SpikeGPTConfig:
    """Read the sizes of a SpikeGPT off the shapes of its tensors; `config` adds what they do not tell.

    Raises CheckpointError where they are not those of a SpikeGPT, or `config` says another size.
    """
    try:
        vocabulary_size, width = shapes["emb.weight"]
        ffn_width = shapes["blocks.0.ffn.key.weight"][0]
        classes = shapes["classifier.weight"][0] if "classifier.weight" in shapes else None
    except (KeyError, ValueError, IndexError) as error:
        found = ", ".join(sorted(shapes)[:4]) or "no tensor at all"
        raise CheckpointError(
            f"{origin} is not a SpikeGPT: emb.weight (vocabulary, width) or blocks.0.ffn.key.weight is missing or "
            f"not a matrix; it holds {found}.",
            "Give a checkpoint with the published key names.",
        ) from error
    layers = len({match[1] for name in shapes if (match := _BLOCK_KEY.match(name))})
    told = {name: config[name] for name in ("context_length", "binary_embedding") if name in config}
    sizes = {"vocabulary_size": vocabulary_size, "width": width, "layers": layers, "ffn_width": ffn_width}
    inferred = SpikeGPTConfig.from_dict({**sizes, "classes": classes, **told}, origin)
    for name, size in {**sizes, "classes": classes}.items():
        if name in config and config[name] != size:
            raise CheckpointError(
                f"{origin}: config.json says {name} = {config[name]}, the tensors say {size}.",
                "Use the config.json that belongs to the checkpoint.",
            )
    return inferred


def tensor_shapes(config: SpikeGPTConfig) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor of a SpikeGPT of these sizes, in the order of its state dict."""
    return dict(_tensors(config))


def _tensors(config: SpikeGPTConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, hidden, vocabulary = config.width, config.ffn_width, config.vocabulary_size
    yield "emb.weight", (vocabulary, width)
    for i in range(config.layers):
        for norm in ("ln0", "ln1", "ln2") if i == 0 else ("ln1", "ln2"):
            yield from _norm(f"blocks.{i}.{norm}", width)
        for name in ("time_decay", "time_first"):
            yield f"blocks.{i}.att.{name}", (width,)
        for name in ("time_mix_k", "time_mix_v", "time_mix_r"):
            yield f"blocks.{i}.att.{name}", (1, 1, width)
        for name in ("key", "value", "receptance", "output"):
            yield f"blocks.{i}.att.{name}.weight", (width, width)
        for name in ("time_mix_k", "time_mix_r"):
            yield f"blocks.{i}.ffn.{name}", (1, 1, width)
        yield f"blocks.{i}.ffn.key.weight", (hidden, width)
        yield f"blocks.{i}.ffn.receptance.weight", (width, width)
        yield f"blocks.{i}.ffn.value.weight", (width, hidden)
    yield from _norm("ln_out", width)
    if config.classes is None:
        yield "head.weight", (vocabulary, width)
    else:
        yield "classifier.weight", (config.classes, width)


def _norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
