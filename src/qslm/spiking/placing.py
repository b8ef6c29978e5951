"""Spiking layers in config.json, and back into a network that was packed.

    "spiking": {"inputs": [{"layers": [PATH, ...], "salient_bits": 8, "clip": 0.9, "threshold": 3.5, "static": null},
                           ...],
                "cache": {"bits": 4, "steps": {PATH: [0.1, ...], ...}}}

Every entry is an input that its layers share, and says how its spike counts are made (`SpikingInput`); in place of the
threshold there may be a static saliency, with the fields of `StaticSaliency`. Every linear layer of the attention
blocks has an entry. How many bits the counts have is said by the format of the site `PATH.weight`, such as
int4-sym-row-a4: integers that spike counts are multiplied with. A site in a format without them belongs to a layer that
reads numbers, until a study rounds it. The key "cache" is there where the KV cache holds integers (`spiking.cache`).
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from math import isfinite
from typing import Any

from torch import nn

from qslm.anatomy import INPUT, OUTPUT
from qslm.anatomy.find import find_anatomy
from qslm.errors import CheckpointError, SpikeError
from qslm.formats.quantized import QuantizedTensor
from qslm.spiking.cache import CacheForm, hold
from qslm.spiking.layer import Activations, SpikeActivations
from qslm.spiking.saliency import Monitor, StaticSaliency
from qslm.spiking.slot import SpikingInput, SpikingSlot

SPIKING = "spiking"  # the key in config.json
CACHE = "cache"  # the key in it
FIELDS = {"layers", "salient_bits", "clip", "threshold", "static"}
STATIC = {one.name for one in fields(StaticSaliency)}


def described(forms: Mapping[str, Activations]) -> dict[str, Any]:
    """What config.json says of the forms of layers by path. Raises SpikeError where one is other than spike counts."""
    found: dict[int, dict[str, Any]] = {}
    for path, form in forms.items():
        if not isinstance(form, SpikeActivations):
            raise SpikeError(f"{path} takes {form.name}, which is not packed.", "Let all layers take spike counts.")
        encoding, static = form.encoding, form.saliency
        static = static.saliency if isinstance(static, Monitor) else static
        entry = {
            "layers": [],
            "salient_bits": encoding.salient_bits,
            "clip": encoding.clip,
            "threshold": form.threshold,
            "static": None if static is None else asdict(static),
        }
        found.setdefault(id(form), entry)["layers"].append(path)
    return {"inputs": list(found.values())}


def place(model: nn.Module, spiking: object, quantized: Mapping[str, QuantizedTensor], origin: str) -> None:
    """Put spiking layers, or slots for them, in the place of linear ones, as `described` said of them.

    quantized: packed sites by name. Raises CheckpointError, which says `origin`, where they do not suit the network, or
    a site that reads spike counts is in no entry.
    """
    linear_layers = {path: one for path, one in model.named_modules() if isinstance(one, nn.Linear)}
    reading = {name.removesuffix(".weight") for name, site in quantized.items() if site.format.activations}
    left = _of_attention(model) | reading
    for entry in _entries(spiking, origin):
        try:
            reads = _input(entry)
        except (SpikeError, OverflowError, TypeError, ValueError) as error:
            problem = (error.problem if isinstance(error, SpikeError) else str(error)).rstrip(".")
            raise CheckpointError(f"{origin}: {SPIKING} has an encoding that is not one: {problem}.", _ANEW) from error
        for path in entry["layers"]:
            site = quantized.get(f"{path}.weight")
            linear = linear_layers.pop(path, None) if isinstance(path, str) else None
            if site is None or linear is None:
                raise CheckpointError(f"{origin}: {SPIKING} names {str(path)[:80]!r}, which is no linear layer.", _ANEW)
            try:
                spikes = site.format.activations > 0
                layer = reads.layer(site, linear.bias) if spikes else SpikingSlot(linear, reads)
            except SpikeError as error:
                raise CheckpointError(f"{origin}: {path}: {error.problem}", _ANEW) from error
            model.set_submodule(path, layer)
            left.discard(path)
    if left:
        raise CheckpointError(f"{origin}: {SPIKING} leaves out {min(left)}, which is a linear layer.", _ANEW)
    if isinstance(spiking, dict) and CACHE in spiking:
        _hold(model, spiking[CACHE], origin)


def _of_attention(model: nn.Module) -> set[str]:
    """The paths of the linear layers of the attention blocks, all of which a conversion replaces."""
    anatomy = find_anatomy(model)
    blocks = {anatomy.path(name) for name in anatomy.blocks if name not in (INPUT, OUTPUT)}
    linear = (path for path, module in model.named_modules() if isinstance(module, nn.Linear))
    return {path for path in linear if any(path.startswith(f"{block}.") for block in blocks)}


def _hold(model: nn.Module, cache: object, origin: str) -> None:
    try:
        hold(model, CacheForm.from_dict(cache))
    except (SpikeError, CheckpointError, OverflowError, ValueError) as error:
        problem = (error.problem if isinstance(error, SpikeError | CheckpointError) else str(error)).rstrip(".")
        raise CheckpointError(f"{origin}: {SPIKING} has a cache that is not one: {problem}.", _ANEW) from error


_ANEW = "The packed model is damaged or of another version: convert it anew (qslm spike)."


def _entries(spiking: object, origin: str) -> list[dict[str, Any]]:
    inputs = spiking.get("inputs") if isinstance(spiking, dict) and spiking.keys() <= {"inputs", CACHE} else None
    entries = inputs if isinstance(inputs, list) else []
    if not entries or not all(
        isinstance(one, dict) and one.keys() == FIELDS and isinstance(one["layers"], list) for one in entries
    ):
        raise CheckpointError(f"{origin}: {SPIKING} is not what a conversion writes.", _ANEW)
    return entries


def _input(entry: Mapping[str, Any]) -> SpikingInput:
    if type(entry["salient_bits"]) is not int:
        raise ValueError(f"salient_bits is {entry['salient_bits']!r}.")
    static = None if entry["static"] is None else _static(entry["static"])
    return SpikingInput(entry["salient_bits"], _number(entry, "clip"), _number(entry, "threshold"), static)


def _static(found: object) -> StaticSaliency:
    if not isinstance(found, dict) or found.keys() != STATIC:
        raise ValueError(f"static has not the fields {', '.join(sorted(STATIC))}.")
    if type(found["tokens"]) is not int:
        raise ValueError(f"tokens is {found['tokens']!r}.")
    for name in sorted(STATIC):
        if _number(found, name) < 0 and name != "center":
            raise ValueError(f"{name} is {found[name]}.")
    return StaticSaliency(**found)


def _number(entry: Mapping[str, Any], name: str) -> float:
    value = entry[name]
    if type(value) not in (int, float) or not isfinite(value):
        raise ValueError(f"{name} is {value!r}.")
    return float(value)
