"""The engine's KV cache of integers against that of `qslm.spiking.cache` in PyTorch."""

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

from qslm import _native, artifact
from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.conversion.cache import calibrate_cache
from qslm.conversion.convert import convert
from qslm.conversion.packing import SPIKES, round_rest
from qslm.errors import ArtifactError
from qslm.formats import Format, canonical_json
from qslm.loading.checkpoint import load_checkpoint
from qslm.models.causal import CausalLogits
from qslm.models.hadamard import Rotation
from qslm.packed import read_config
from qslm.quantizers import RoundedSites
from qslm.runtime import Engine
from qslm.spiking import Encoding
from qslm.spiking.cache import DYNAMIC, STATIC, CacheForm, hold
from qslm.spiking.layer import SpikeActivations

IDS = torch.randint(40, (30,), generator=torch.Generator().manual_seed(3))
VALUES = "network.model.layers.{}.self_attn.v_proj"


@pytest.mark.parametrize("width", [1, 2, 4, 6, 12, 20, 24, 28, 36, 40, 64, 72, 80, 96, 128, 140, 256, 264, 300])
def test_rotations_are_those_of_the_conversion(width):
    x = np.random.default_rng(width).standard_normal(width).astype(np.float32)
    wanted = Rotation.of(width).apply(torch.from_numpy(x)).numpy()
    found = x.copy()
    _native.rotate(found)
    assert np.abs(found - wanted).max() < 1e-6 * np.abs(wanted).max()


def converted(kind):
    model = CausalLogits(tiny(kind))
    anatomy, config, task = find_anatomy(model), model.config.to_dict(), NextToken(model)
    form = lambda seen: SpikeActivations(Encoding(bits=8, clip=1.0), 3.5)  # noqa: E731
    found = convert(model, anatomy, task, {SPIKES: form}, weights=Format.parse("int8-sym-row"), tokens=500)
    packable = round_rest(found, anatomy, config)
    found.use(SPIKES)
    return model, task, packable


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def whole(request, tmp_path_factory):
    """A conversion whose own counts are fine, so that the cache is what is coarse: folders by bits and next step."""
    model, task, packable = converted(request.param)
    folders = {}
    for bits, step in ((None, STATIC), (4, STATIC), (4, DYNAMIC), (3, DYNAMIC), (8, STATIC)):
        folders[bits, step] = tmp_path_factory.mktemp("whole") / "packed"
        form = None if bits is None else calibrate_cache(model, task, bits, step)
        (packable if form is None else packable.with_cache(form)).write(folders[bits, step])
    return folders


@pytest.mark.parametrize("bits, step", [(4, STATIC), (4, DYNAMIC), (3, DYNAMIC), (8, STATIC)])
def test_the_cache_holds_what_pytorch_holds(whole, bits, step):
    """Where a key or a value lies between two codes the last bit decides, and a code of 4 bits is 1/15 of a range."""
    folder = whole[bits, step]
    model = load_checkpoint(folder).model
    with torch.inference_mode():
        wanted = model(IDS[None])[0].numpy()
        hold(model, None)
        without = model(IDS[None])[0].numpy()
    found = Engine(folder, floats=True).advance_all(IDS.tolist())
    errors = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    cost = np.linalg.norm(without - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert np.median(errors) < 1e-4 and errors.max() < 0.2
    assert np.median(cost) > (0.02 if bits < 8 else 1e-3) > 10 * np.median(errors)


def test_neither_chunks_nor_threads_change_a_bit_and_a_state_goes_on(whole):
    for bits, step in ((4, STATIC), (3, DYNAMIC), (8, STATIC)):
        folder = whole[bits, step]
        wanted = Engine(folder, threads=1, chunk=1).advance_all(IDS.tolist())
        for threads, chunk in ((1, 8), (2, 3), (3, 64)):
            assert np.array_equal(Engine(folder, threads=threads, chunk=chunk).advance_all(IDS.tolist()), wanted)
        engine, other = Engine(folder), Engine(folder)
        engine.advance(IDS[:11].tolist())
        other.restore(engine.save())
        assert np.array_equal(other.advance(IDS[11:].tolist()), wanted[-1])


def test_the_state_is_as_much_smaller(whole):
    """A head of 4 channels takes 32 bytes in float32; in 4 bits 4, and 9 of steps and zero point."""
    sizes = {key: len(Engine(folder).save()) for key, folder in whole.items()}
    tokens = 2 * 2 * 64  # layers, heads of keys, context
    assert sizes[None, STATIC] == 24 + 32 * tokens
    assert sizes[4, STATIC] == sizes[4, DYNAMIC] == sizes[3, DYNAMIC] == 24 + (4 + 9) * tokens
    assert sizes[8, STATIC] == 24 + (8 + 9) * tokens


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 1}, "2 to 8 bits"), ({"bits": 9}, "2 to 8 bits"), ({"bits": "4"}, "byte"),
        ({"more": 1}, "bits and steps"),
        ({"steps": {}}, "a layer of values has no steps"), ({"steps": [1]}, "byte"),
        ({"steps": {VALUES.format(0): [0.1, 0.1]}}, "a layer of values has no steps"),
        ({"steps": {VALUES.format(layer): [0.1] * 3 for layer in (0, 1)}}, "one step of values for each head"),
        ({"steps": {VALUES.format(layer): [0.1] for layer in (0, 1)}}, "one step of values for each head"),
        ({"steps": {VALUES.format(layer): [0.1, 0] for layer in (0, 1)}}, "not above 0"),
        ({"steps": {VALUES.format(layer): [0.1, 1e39] for layer in (0, 1)}}, "not above 0"),
        ({"steps": {VALUES.format(layer): [0.1, "0"] for layer in (0, 1)}}, "byte"),
        ({"steps": {VALUES.format(layer): [0.1, 0.1] for layer in (0, 1, 2)}}, "no layer of values"),
        ({"steps": {"network.model.layers.0.self_attn.k_proj": [0.1, 0.1]}}, "no layer of values"),
    ],
)  # fmt: skip
def test_a_cache_that_is_none_is_refused(tmp_path, whole, change, message):
    source = whole[4, STATIC]
    config, entry = read_config(source)
    config = copy.deepcopy(config)
    config["spiking"]["cache"].update(change)
    shutil.copy(source / "model.safetensors", tmp_path)
    entry = entry | {"config_sha256": hashlib.sha256(canonical_json(config).encode()).hexdigest()}
    (tmp_path / "config.json").write_text(json.dumps(config | {"qslm": entry}))
    with pytest.raises(ArtifactError, match=message):
        Engine(tmp_path)


def test_values_of_numbers_have_no_cache_of_integers(tmp_path):
    model = CausalLogits(tiny())
    anatomy = find_anatomy(model)
    allocation = Allocation.uniform(anatomy, Format.parse("int4-sym-row"))
    config = model.config.to_dict() | {"spiking": {"inputs": [], "cache": CacheForm(4).to_dict()}}
    artifact.write(tmp_path, RoundedSites(model.state_dict(), allocation), allocation, config=config)
    with pytest.raises(ArtifactError, match="values of layer 0 are not of spike counts"):
        Engine(tmp_path)
