"""The native engine on a SpikeGPT whose linear layers read spike counts, against PyTorch, and against itself."""

import copy
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from networks.spikegpt import random_ids, random_spikegpt
from networks.tasks import Agreement, NextToken

from qslm import _native
from qslm.anatomy.find import find_anatomy
from qslm.conversion.convert import convert
from qslm.conversion.packing import SPIKES, round_rest
from qslm.errors import ArtifactError
from qslm.formats import Format, canonical_json
from qslm.loading.checkpoint import load_checkpoint
from qslm.models.neurons import SpikeTrace
from qslm.packed import read_config
from qslm.runtime import Engine
from qslm.spiking import Encoding, calibrate_ratio
from qslm.spiking.layer import SpikeActivations

TOKENS = 40


@pytest.fixture(autouse=True)
def best_kernels():
    yield
    _native.choose_kernels(None)


def dynamic(seen):
    return SpikeActivations(Encoding(clip=0.9), 2.5)


def static(seen):
    return SpikeActivations(Encoding(clip=0.9), saliency=calibrate_ratio([seen.samples], 0.05))


def spiking(folder, form=dynamic, format="int4-sym-row", **shape):
    """A conversion of a small SpikeGPT with 4-bit spike counts, packed, and the network as it is opened."""
    model = random_spikegpt(**{"vocabulary": 61, "width": 48, "layers": 3, "ffn_width": 160} | shape)
    anatomy, config = find_anatomy(model), model.config.to_dict()
    task = Agreement(model) if model.config.classes else NextToken(model)
    found = convert(model, anatomy, task, {SPIKES: form}, weights=Format.parse(format), tokens=500)
    round_rest(found, anatomy, config).write(folder)
    return load_checkpoint(folder).model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "packed"
    return folder, spiking(folder)


def traced(model, ids):
    """Logits of ids (tokens,) in PyTorch, and the spikes of its neurons (tokens, neurons, width)."""
    trace = SpikeTrace()
    with torch.inference_mode():
        logits = model(ids[None], trace=trace)[0]
    return logits.numpy(), torch.cat(trace.spikes).transpose(0, 1).contiguous().numpy()


@pytest.mark.parametrize("form", [dynamic, static])
@pytest.mark.parametrize(("format", "shape"), [("int4-sym-g32-p2", {}), ("int3-sym-row", {"width": 130, "layers": 2})])
def test_a_conversion_runs_on_its_spike_counts(tmp_path, form, format, shape):
    """Where a value lies between two counts, the last bit of a norm decides: a count more or less is 1/7 of a value."""
    model = spiking(tmp_path, form, format, **shape)
    ids = random_ids(model, 1, TOKENS)[0]
    wanted, spikes = traced(model, ids)
    other, _ = traced(model, ids.roll(1))
    assert 0.05 < spikes.mean() < 0.95
    engine = Engine(tmp_path, floats=True)
    engine.trace(spikes, None)
    found = engine.advance_all(ids.tolist())
    errors = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert np.median(errors) < 1e-4 and errors.max() < 0.2
    assert np.linalg.norm(other - wanted) > 0.1 * np.linalg.norm(wanted)


def test_neither_chunks_nor_threads_nor_kernels_change_a_bit(whole):
    folder, model = whole
    ids = random_ids(model, 1, TOKENS)[0].tolist()
    wanted = Engine(folder, threads=1, chunk=1).advance_all(ids)
    assert len(np.unique(wanted)) > 1000
    for name in _native.kernels():
        _native.choose_kernels(name)
        for threads, chunk in ((1, 8), (2, 3), (3, 64)):
            assert np.array_equal(Engine(folder, threads=threads, chunk=chunk).advance_all(ids), wanted)


def test_a_classifier_runs_on_its_spike_counts(tmp_path):
    model = spiking(tmp_path, classes=3, vocabulary=40)
    ids = random_ids(model, 1, TOKENS)
    with torch.inference_mode():
        wanted = model(ids)[0].numpy()
    found = Engine(tmp_path, floats=True).classify(ids[0].tolist())
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()  # spikes near the threshold may differ


def packed_with(folder, source, change):
    """A copy of a packed model whose config.json was changed."""
    config, entry = read_config(source)
    config = copy.deepcopy(config)
    change(config)
    folder.mkdir()
    shutil.copy(source / "model.safetensors", folder)
    entry = entry | {"config_sha256": hashlib.sha256(canonical_json(config).encode()).hexdigest()}
    (folder / "config.json").write_text(json.dumps(config | {"qslm": entry}))
    return folder


SALIENCY = {"center": 0.0, "reach": 1.0, "ratio": 0.1, "spread": 0.1, "tokens": 9}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": ["blocks.3.att.key"]}, "blocks.3.att.key, which is no linear layer"),
        ({"layers": ["blocks.0.att.keys"]}, "no linear layer"), ({"layers": ["blocks..att.key"]}, "no linear layer"),
        ({"layers": ["blocks.18446744073709551616.att.key"]}, "no linear layer"),
        ({"layers": ["head"]}, "no linear layer"),
        ({"layers": ["blocks.0.att.key"] * 2}, "blocks.0.att.key twice"), ({"layers": []}, "does not say how"),
        ({"layers": "blocks.0.att.key"}, "byte"), ({"layers": [3]}, "byte"),
        ({"salient_bits": 9}, "an encoding that is not one"), ({"salient_bits": 1}, "an encoding that is not one"),
        ({"salient_bits": 4.5}, "byte"), ({"clip": 0}, "an encoding that is not one"),
        ({"clip": 1.5}, "an encoding that is not one"), ({"clip": None}, "byte"),
        ({"threshold": 0}, "an encoding that is not one"), ({"threshold": 1e300}, "an encoding that is not one"),
        ({"static": {}}, "no center and reach"), ({"static": SALIENCY | {"center": "0"}}, "byte"),
        ({"static": SALIENCY | {"reach": -1}}, "no center and reach"), ({"static": 3}, "byte"),
        ({"static": SALIENCY | {"center": 1e39}}, "no center and reach"), ({"static": []}, "byte"),
    ],
)  # fmt: skip
def test_an_input_that_is_none_is_refused(tmp_path, whole, change, message):
    with pytest.raises(ArtifactError, match=message):
        Engine(packed_with(tmp_path / "odd", whole[0], lambda one: one["spiking"]["inputs"][0].update(change)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one.pop("spiking"), "does not say how"),
        (lambda one: one.update(spiking=None), "does not say how"),
        (lambda one: one.update(spiking=[]), "byte"),
        (lambda one: one["spiking"].update(inputs={}), "byte"),
        (lambda one: one["spiking"].update(inputs=[[]]), "byte"),
        (lambda one: one["spiking"].update(inputs=one["spiking"]["inputs"][:1] * 2), "twice"),
        (lambda one: one["spiking"].update(inputs=[{"layers": []}] * 100), "too many inputs"),
        (lambda one: one["spiking"].update(outputs=[]), "not what a conversion writes"),
        (lambda one: one["spiking"].update(cache={"bits": 4, "steps": None}), "KV cache"),
    ],
)
def test_spikes_that_are_not_what_a_conversion_writes_are_refused(tmp_path, whole, change, message):
    with pytest.raises(ArtifactError, match=message):
        Engine(packed_with(tmp_path / "odd", whole[0], change))
