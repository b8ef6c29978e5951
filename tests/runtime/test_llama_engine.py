"""The native engine on networks built as Llama, with numbers and with spike counts, against PyTorch."""

import copy
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from networks.llama import tiny
from networks.tasks import NextToken

from qslm import artifact
from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.conversion.convert import convert
from qslm.conversion.packing import SPIKES, round_rest
from qslm.errors import ArtifactError, TaskError
from qslm.formats import Format, canonical_json
from qslm.loading.checkpoint import load_checkpoint
from qslm.models.causal import CausalLogits
from qslm.packed import read_config
from qslm.quantizers import RoundedSites
from qslm.runtime import Engine
from qslm.spiking import Encoding
from qslm.spiking.layer import SpikeActivations

IDS = torch.randint(40, (30,), generator=torch.Generator().manual_seed(3))


def packed(model, folder, format):
    allocation = Allocation.uniform(find_anatomy(model), Format.parse(format))
    artifact.write(folder, RoundedSites(model.state_dict(), allocation), allocation, config=model.config.to_dict())
    return folder


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("format", ["int8-row", "int4-g32", "float32"])
def test_it_computes_what_pytorch_computes_on_the_dequantized_weights(tmp_path, kind, tied, format):
    folder = packed(CausalLogits(tiny(kind, tied=tied)), tmp_path, format)
    with torch.inference_mode():
        wanted = load_checkpoint(folder).model(IDS[None])[0].numpy()
    engine = Engine(folder, floats=True)
    found = engine.advance_all(IDS.tolist())
    assert np.abs(found - wanted).max() < 1e-4 * max(1, np.abs(wanted).max())
    rounded = Engine(folder).advance_all(IDS.tolist())
    assert 0 <= np.linalg.norm(rounded - wanted) / np.linalg.norm(wanted) < 0.05
    assert (format == "float32") == np.array_equal(rounded, found)


def test_neither_chunks_nor_threads_change_a_bit_and_a_state_goes_on(tmp_path):
    folder = packed(CausalLogits(tiny()), tmp_path, "int4-g32")
    wanted = Engine(folder, threads=1, chunk=1).advance_all(IDS.tolist())
    for threads, chunk in ((1, 8), (2, 3), (3, 64)):
        assert np.array_equal(Engine(folder, threads=threads, chunk=chunk).advance_all(IDS.tolist()), wanted)
    engine, other = Engine(folder), Engine(folder)
    engine.advance(IDS[:11].tolist())
    other.restore(engine.save())
    assert np.array_equal(other.advance(IDS[11:].tolist()), wanted[-1])


def test_a_full_context_is_refused(tmp_path):
    engine = Engine(packed(CausalLogits(tiny()), tmp_path, "int4-row"))
    engine.advance([1] * 60)
    with pytest.raises(TaskError, match="context of 64 tokens is full: 60 were seen, 5 are to come"):
        engine.advance([1] * 5)
    engine.advance([1] * 4)
    engine.reset()
    engine.advance([1] * 64)


@pytest.mark.parametrize("kind", ["mistral", "gemma"])
def test_other_types_are_refused_by_name(tmp_path, kind):
    with pytest.raises(ArtifactError, match="types llama and qwen2"):
        Engine(packed(CausalLogits(tiny(kind)), tmp_path, "int4-row"))


def spiking(folder, format="int4-sym-row", kind="llama"):
    """A conversion of a small network with 4-bit spike counts, packed, and the network as it is opened."""
    model = CausalLogits(tiny(kind))
    anatomy, config = find_anatomy(model), model.config.to_dict()
    form = lambda seen: SpikeActivations(Encoding(clip=0.9), 2.5)  # noqa: E731
    found = convert(model, anatomy, NextToken(model), {SPIKES: form}, weights=Format.parse(format), tokens=500)
    round_rest(found, anatomy, config).write(folder)
    return load_checkpoint(folder).model


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("format", ["int4-sym-row", "int4-sym-g32-p2"])
def test_a_conversion_runs_on_its_spike_counts(tmp_path, kind, format):
    """Where a value lies between two counts, the last bit of a norm decides: a count more or less is 1/7 of a value."""
    model = spiking(tmp_path, format, kind)
    with torch.inference_mode():
        wanted = model(IDS[None])[0].numpy()
        other = model(IDS[None].flip(1))[0].numpy()
    found = Engine(tmp_path, floats=True).advance_all(IDS.tolist())
    errors = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert np.median(errors) < 1e-3 and errors.max() < 0.2
    assert np.linalg.norm(other - wanted) > 0.3 * np.linalg.norm(wanted)
    assert np.array_equal(
        Engine(tmp_path, chunk=1, threads=1).advance(IDS.tolist()), Engine(tmp_path).advance(IDS.tolist())
    )


def test_spikes_that_config_json_does_not_tell_of_are_refused(tmp_path):
    spiking(tmp_path)
    for change, message in (
        (lambda one: one.pop("spiking"), "does not say how"),
        (
            lambda one: one["spiking"]["inputs"][0].update(layers=["network.model.layers.9.mlp.up_proj"]),
            "no linear layer",
        ),
        (lambda one: one["spiking"]["inputs"][0].update(salient_bits=9), "encoding that is not one"),
    ):
        config, entry = read_config(tmp_path)
        config = copy.deepcopy(config)
        change(config)
        folder = tmp_path / message.replace(" ", "")
        folder.mkdir()
        shutil.copy(tmp_path / "model.safetensors", folder)
        entry = entry | {"config_sha256": hashlib.sha256(canonical_json(config).encode()).hexdigest()}
        (folder / "config.json").write_text(json.dumps(config | {"qslm": entry}))
        with pytest.raises(ArtifactError, match=message):
            Engine(folder)
