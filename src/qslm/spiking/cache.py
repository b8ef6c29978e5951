"""A KV cache that holds integers: keys rounded behind RoPE, values as the spike counts that `v_proj` fires.

RoPE comes between `k_proj` and the cache, and turns pairs of channels by real angles: there no threshold can hold the
scale, so keys are rounded (`models.cache`). Nothing comes between `v_proj` and the cache.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import nn

from qslm.errors import CheckpointError, SpikeError
from qslm.models.causal import CausalLogits
from qslm.spiking.firing import Firing
from qslm.spiking.layer import RoundedLayer

STATIC, DYNAMIC = "static", "dynamic"
NEXT_STEPS = (STATIC, DYNAMIC)


@dataclass(frozen=True)
class CacheForm:
    """How a KV cache holds integers.

    bits: of keys and values, 2 to 8. steps: of the counts of every head, by the path of `v_proj`; None finds them for
    each token and head. Raises SpikeError where bits are others.
    """

    bits: int
    steps: Mapping[str, tuple[float, ...]] | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits)

    def to_dict(self) -> dict[str, Any]:
        """For config.json, as `from_dict` reads it: {"bits": 4, "steps": {PATH: [0.1, ...], ...} or null}."""
        steps = None if self.steps is None else {path: list(some) for path, some in self.steps.items()}
        return {"bits": self.bits, "steps": steps}

    @classmethod
    def from_dict(cls, values: object) -> "CacheForm":
        """Raises ValueError where it is not what `to_dict` writes, SpikeError as the class does."""
        match values:
            case {"bits": int() as bits, "steps": None, **more} if not more:
                return cls(bits)
            case {"bits": int() as bits, "steps": dict() as steps, **more} if not more:
                return cls(bits, {path: _steps(path, some) for path, some in steps.items()})
        raise ValueError("it has no bits and steps")


def check_bits(bits: int) -> None:
    """Raise SpikeError unless a KV cache may have so many bits."""
    if type(bits) is not int or not 2 <= bits <= 8:
        raise SpikeError(f"A KV cache of {bits} bits is none.", "Give 2 to 8.")


def value_layers(model: nn.Module) -> dict[str, tuple[RoundedLayer, int]]:
    """The spiking layers of values by path, and their heads.

    Raises CheckpointError where the network has no KV cache, or one of these layers is not spiking.
    """
    if not isinstance(model, CausalLogits):
        raise CheckpointError(
            f"A {type(model).__name__} has no KV cache.", "Such a cache is for networks that are built as Llama is."
        )
    found = {}
    for path, attention in model.attentions().items():
        layer = attention.v_proj
        if not isinstance(layer, RoundedLayer):
            raise CheckpointError(f"{path}.v_proj is not spiking, so it fires no values.", "Convert the network first.")
        found[f"{path}.v_proj"] = layer, len(layer.neurons.codes) // attention.head_dim
    return found


def hold(model: nn.Module, form: CacheForm | None) -> None:
    """Let the KV cache of a network hold integers from now on, or numbers again where the form is None.

    Raises CheckpointError as `value_layers` does, SpikeError where the steps are not those of its layers and heads;
    the network is then as before.
    """
    layers = value_layers(model)
    if form is not None and form.steps is not None and form.steps.keys() != layers.keys():
        odd = sorted(form.steps.keys() ^ layers.keys())[0]
        raise SpikeError(
            f"{str(odd)[:80]!r} has steps of values and is no layer of values, or the reverse.",
            f"Give those of {len(layers)} layers.",
        )
    firing = {path: None if form is None else _firing(form, path, heads) for path, (_, heads) in layers.items()}
    for path, (layer, _) in layers.items():
        layer.firing = firing[path]
    assert isinstance(model, CausalLogits)
    model.key_bits = None if form is None else form.bits


def _firing(form: CacheForm, path: str, heads: int) -> Firing:
    return Firing(form.bits, heads, None if form.steps is None else torch.tensor(form.steps[path]))


def _steps(path: object, numbers: object) -> tuple[float, ...]:
    if not isinstance(numbers, list) or not all(type(one) in (int, float) and isfinite(one) for one in numbers):
        raise ValueError(f"{str(path)[:80]!r} has steps that are no numbers")
    return tuple(map(float, numbers))
