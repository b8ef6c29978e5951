"""A converted network as a packed model: integer weights as its layers have them, spike counts in config.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from qslm import artifact
from qslm.allocation import Allocation
from qslm.anatomy import Anatomy
from qslm.conversion.convert import Conversion
from qslm.formats import FLOAT32, SIGN, Format
from qslm.formats.quantized import QuantizedTensor
from qslm.quantizers import round_site
from qslm.spiking.placing import SPIKING, described

REST = Format.parse("int8-row")  # of embedding and head, which stay outside the spiking layers (derived)
REST_QUANTIZER = "clip"


def write_spiking(
    folder: Path | str,
    conversion: Conversion,
    anatomy: Anatomy,
    config: Mapping[str, Any],
    *,
    tokenizer_json: str | None = None,
    rest: Format = REST,
) -> artifact.Artifact:
    """Pack a conversion into a folder, which `load_checkpoint` opens in the integer form.

    anatomy, config: of the network before its layers were replaced. Other matrices are packed in `rest`, a binarized
    embedding as signs, vectors in float32. Raises ArtifactError where the folder holds something else or cannot be
    written, SpikeError unless all layers take spike counts.
    """
    spiking = described(conversion.layers)
    layers = {f"{path}.weight": layer for path, layer in conversion.layers.items()}

    def stored(name: str) -> Format:
        site = anatomy[name]
        if name in layers:
            return layers[name].rounded.format
        return FLOAT32 if site.is_vector else SIGN if site.binarized else rest

    formats = tuple(stored(site.name) for site in anatomy.sites)
    quantizers = tuple(conversion.quantizer if site.name in layers else REST_QUANTIZER for site in anatomy.sites)
    allocation = Allocation(anatomy, formats, quantizers)
    state = {name: value.cpu() for name, value in conversion.model.state_dict().items() if isinstance(value, Tensor)}
    state |= {f"{path}.bias": one.bias for path, one in conversion.layers.items() if one.bias is not None}
    sites: dict[str, QuantizedTensor] = {}
    for site, fmt in allocation.items():
        layer = layers.get(site.name)
        sites[site.name] = round_site(state[site.name], fmt, REST_QUANTIZER) if layer is None else layer.rounded
    return artifact.write(folder, sites, allocation, config={**config, SPIKING: spiking}, tokenizer_json=tokenizer_json)
