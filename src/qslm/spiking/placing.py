"""Spiking layers in config.json, and back into a network that was packed.

    "spiking": {"inputs": [{"layers": [PATH, ...], "bits": 4, "salient_bits": 8, "clip": 0.9, "threshold": 3.5,
                            "center": null, "reach": null}, ...],
                "cache": {"bits": 4, "steps": {PATH: [0.1, ...], ...}}}

Every entry is an input that its layers share, with the encoding of its spike counts; center and reach are those of a
static saliency, in place of the threshold. The integer weights of a layer lie packed as its site `PATH.weight`; every
linear layer of the attention blocks has an entry. The key "cache" is there where the KV cache holds integers
(`spiking.cache`).
"""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from torch import nn

from qslm.anatomy import INPUT, OUTPUT
from qslm.anatomy.find import find_anatomy
from qslm.errors import CheckpointError, SpikeError
from qslm.formats.quantized import QuantizedTensor
from qslm.spiking.cache import CacheForm, hold
from qslm.spiking.encoding import Encoding
from qslm.spiking.layer import Activations, RoundedLayer, SpikeActivations
from qslm.spiking.saliency import StaticSaliency

SPIKING = "spiking"  # the key in config.json
CACHE = "cache"  # the key in it
FIELDS = {"layers", "bits", "salient_bits", "clip", "threshold", "center", "reach"}


def described(forms: Mapping[str, Activations]) -> dict[str, Any]:
    """What config.json says of the forms of layers by path. Raises SpikeError where one is other than spike counts."""
    found: dict[int, dict[str, Any]] = {}
    for path, form in forms.items():
        if not isinstance(form, SpikeActivations):
            raise SpikeError(f"{path} takes {form.name}, which is not packed.", "Let all layers take spike counts.")
        encoding, static = form.encoding, form.saliency
        entry = {
            "layers": [],
            "bits": encoding.bits,
            "salient_bits": encoding.salient_bits,
            "clip": encoding.clip,
            "threshold": form.threshold,
            "center": None if static is None else static.center,
            "reach": None if static is None else static.reach,
        }
        found.setdefault(id(form), entry)["layers"].append(path)
    return {"inputs": list(found.values())}


def place(model: nn.Module, spiking: object, quantized: Mapping[str, QuantizedTensor], origin: str) -> None:
    """Put spiking layers in the place of linear ones, as `described` said of them.

    quantized: packed sites by name. Raises CheckpointError, which says `origin`, where they do not suit the network.
    """
    left = _linear_layers(model)
    for entry in _entries(spiking, origin):
        try:
            form = _form(entry)
        except (SpikeError, OverflowError, TypeError, ValueError) as error:
            problem = (error.problem if isinstance(error, SpikeError) else str(error)).rstrip(".")
            raise CheckpointError(f"{origin}: {SPIKING} has an encoding that is not one: {problem}.", _ANEW) from error
        for path in entry["layers"]:
            site = quantized.get(f"{path}.weight")
            linear = dict(model.named_modules()).get(path) if isinstance(path, str) else None
            if site is None or not isinstance(linear, nn.Linear):
                raise CheckpointError(f"{origin}: {SPIKING} names {str(path)[:80]!r}, which is no linear layer.", _ANEW)
            try:
                model.set_submodule(path, RoundedLayer(site, linear.bias, form))
            except SpikeError as error:
                raise CheckpointError(f"{origin}: {path}: {error.problem}", _ANEW) from error
            left.discard(path)
    if left:
        raise CheckpointError(f"{origin}: {SPIKING} leaves out {sorted(left)[0]}, which is a linear layer.", _ANEW)
    if isinstance(spiking, dict) and CACHE in spiking:
        _hold(model, spiking[CACHE], origin)


def _linear_layers(model: nn.Module) -> set[str]:
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


def _form(entry: Mapping[str, Any]) -> SpikeActivations:
    for name in ("bits", "salient_bits"):
        if type(entry[name]) is not int:
            raise ValueError(f"{name} is {entry[name]!r}.")
    static = None
    if entry["center"] is not None or entry["reach"] is not None:
        static = StaticSaliency(_number(entry, "center"), _number(entry, "reach"))
        if static.reach < 0:
            raise ValueError(f"reach is {static.reach}.")
    encoding = Encoding(entry["bits"], entry["salient_bits"], _number(entry, "clip"))
    threshold = _number(entry, "threshold")
    if threshold <= 0:
        raise ValueError(f"threshold is {threshold}.")
    return SpikeActivations(encoding, threshold, static)


def _number(entry: Mapping[str, Any], name: str) -> float:
    value = entry[name]
    if type(value) not in (int, float) or not isfinite(value):
        raise ValueError(f"{name} is {value!r}.")
    return float(value)
