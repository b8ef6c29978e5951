"""A converted network as a packed model: integer weights as its layers have them, spike counts in config.json."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qslm import artifact
from qslm.allocation import Allocation
from qslm.anatomy import Anatomy, Site
from qslm.conversion.convert import Conversion
from qslm.formats import FLOAT32, SIGN, Format
from qslm.formats.quantized import QuantizedTensor
from qslm.quantizers import RoundedSites, round_site
from qslm.spiking.cache import CacheForm
from qslm.spiking.layer import Activations, RoundedLayer, SpikeActivations
from qslm.spiking.placing import CACHE, SPIKING, described

REST = Format.parse("int8-row")  # of embedding and head, which stay outside the spiking layers (derived)
REST_QUANTIZER = "clip"
SPIKES = "spikes"  # the form that is packed


@dataclass(frozen=True, eq=False)
class Packable:
    """A conversion whose other sites are rounded too, as they will be packed: allocation, sites, and config.json."""

    allocation: Allocation
    sites: Mapping[str, QuantizedTensor]
    config: Mapping[str, Any]

    def with_cache(self, form: CacheForm) -> "Packable":
        """The same with a KV cache that holds integers."""
        return replace(self, config={**self.config, SPIKING: {**self.config[SPIKING], CACHE: form.to_dict()}})

    def write(self, folder: Path | str, tokenizer_json: str | None = None) -> artifact.Artifact:
        """Pack it into a folder, which `load_checkpoint` opens in the integer form. Raises ArtifactError."""
        return artifact.write(folder, self.sites, self.allocation, config=self.config, tokenizer_json=tokenizer_json)


@torch.no_grad()
def round_rest(conversion: Conversion, anatomy: Anatomy, config: Mapping[str, Any], rest: Format = REST) -> Packable:
    """Round what stays outside the spiking layers, in place, so that the network is what its packed file will be.

    anatomy, config: of the network before its layers were replaced. Other matrices get the format `rest`, a binarized
    embedding signs, vectors float32. Raises SpikeError unless all layers can take spike counts.
    """
    spiking = described({path: conversion.forms[SPIKES][path] for path in conversion.layers})
    layers = {
        f"{path}.weight": _packed(layer, conversion.forms[SPIKES][path]) for path, layer in conversion.layers.items()
    }
    state = {name: value for name, value in conversion.model.state_dict().items() if isinstance(value, Tensor)}
    state |= {f"{path}.bias": one.bias for path, one in conversion.layers.items() if one.bias is not None}

    def stored(site: Site) -> Format:
        if site.name in layers:
            return layers[site.name].format
        return FLOAT32 if site.is_vector else SIGN if site.binarized else rest

    formats = tuple(stored(site) for site in anatomy.sites)
    quantizers = tuple(conversion.quantizer if site.name in layers else REST_QUANTIZER for site in anatomy.sites)
    allocation = Allocation(anatomy, formats, quantizers)
    sites: dict[str, QuantizedTensor] = {}
    for site, fmt in allocation.items():
        if site.name in layers:
            sites[site.name] = layers[site.name]
            continue
        sites[site.name] = round_site(state[site.name].cpu(), fmt, REST_QUANTIZER, name=site.name)
        state[site.name].copy_(sites[site.name].dequantize())
    return Packable(allocation, sites, {**config, SPIKING: spiking})


def unrounded(
    state: Mapping[str, Tensor], conversion: Conversion, anatomy: Anatomy, config: Mapping[str, Any]
) -> Packable:
    """The network as it was, in float32, with how its spike counts are made: what a study rounds.

    state: of the network before its layers were replaced.
    """
    spiking = described({path: conversion.forms[SPIKES][path] for path in conversion.layers})
    allocation = Allocation.float32(anatomy)
    return Packable(allocation, RoundedSites(state, allocation), {**config, SPIKING: spiking})


def _packed(layer: RoundedLayer, form: Activations) -> QuantizedTensor:
    """The weights of a layer in the format that says what they read."""
    assert isinstance(form, SpikeActivations)
    return replace(layer.rounded, format=replace(layer.rounded.format, activations=form.encoding.bits))
