"""A packed conversion answers as the converted network, bit for bit, wherever it is opened."""

import json
import shutil

import pytest
import torch
from networks.llama import TYPES, tiny
from networks.spikegpt import random_spikegpt
from networks.tasks import NextToken

from qslm import artifact
from qslm.anatomy.find import find_anatomy
from qslm.conversion.convert import convert
from qslm.conversion.packing import SPIKES, round_rest
from qslm.conversion.rotate import rotate
from qslm.errors import CheckpointError, SpikeError, StudyError
from qslm.folders import CONFIG
from qslm.loading.checkpoint import load_checkpoint
from qslm.loading.outline import read_outline
from qslm.models.causal import CausalLogits
from qslm.spiking import Encoding
from qslm.spiking.layer import FloatActivations, RoundedLayer, SpikeActivations
from qslm.study.subject import Subject


def network_of(kind):
    if kind == "spikegpt":
        return random_spikegpt(vocabulary=40, width=32, layers=2)
    pytest.importorskip("transformers", reason="needs pip install 'qslm[llama]'")
    return CausalLogits(tiny(kind.removesuffix(", rotated"), tied=kind != "gemma"))


def packed(kind, folder, form=lambda seen: SpikeActivations(Encoding(clip=0.9), 2.5)):
    model = network_of(kind)
    if "rotated" in kind:
        rotate(model.network)
    anatomy, config = find_anatomy(model), model.config.to_dict()
    found = convert(model, anatomy, NextToken(model), {SPIKES: form}, tokens=500)
    round_rest(found, anatomy, config).write(folder)
    return model


@pytest.fixture(scope="module")
def spikegpt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spiking") / "packed"
    return packed("spikegpt", folder), folder


@pytest.mark.parametrize("kind", [*TYPES, "llama, rotated", "spikegpt"])
def test_a_packed_conversion_answers_as_the_converted_network(kind, tmp_path):
    model, ids = packed(kind, tmp_path), torch.arange(40).reshape(2, 20) % 32
    opened = load_checkpoint(tmp_path)
    with torch.inference_mode():
        assert torch.equal(opened.model(ids), model(ids))
    layers = [one for one in opened.model.modules() if isinstance(one, RoundedLayer)]
    assert len(layers) == 14 and all(isinstance(one.activations, SpikeActivations) for one in layers)
    forms = {id(one.activations) for one in layers}
    assert len(forms) == len({id(one.activations) for one in model.modules() if isinstance(one, RoundedLayer)})
    assert read_outline(tmp_path).file_bytes == opened.file_bytes == artifact.read(tmp_path).file_bytes


def test_the_file_holds_four_bits_a_weight_of_the_layers(spikegpt):
    _, folder = spikegpt
    found = artifact.read(folder)
    assert {str(one.format) for name, one in found.quantized.items() if ".att." in name and "weight" in name} == {
        "int4-sym-row"
    }
    assert len(artifact.verify(folder)) == 5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda one: one.update(bits=9), "No encoding has 9 bits"),
        (lambda one: one.update(bits=True), "bits is True"),
        (lambda one: one.update(clip="0.9"), "clip is '0.9'"),
        (lambda one: one.update(threshold=-1), "threshold"),
        (lambda one: one.update(threshold=10**400), "an encoding that is not one"),
        (lambda one: one.update(center=0.0, reach=-1.0), "reach is -1.0"),
        (lambda one: one.update(center=0.5), "reach is None"),
        (lambda one: one.pop("clip"), "not what a conversion writes"),
        (lambda one: one.update(layers=["blocks.0.att"]), "which is no linear layer"),
        (lambda one: one.update(layers=[7]), "names '7'"),
        (lambda one: one.update(layers=["head"]), "head"),
    ],
)
def test_a_config_that_was_changed_is_refused(spikegpt, tmp_path, change, told):
    """The digest of config.json is made anew: what is in it is not trusted either."""
    folder = shutil.copytree(spikegpt[1], tmp_path / "changed")
    config, _ = artifact.packed.read_config(folder)
    change(config["spiking"]["inputs"][0])
    entry = json.loads((folder / CONFIG).read_text())["qslm"]
    (folder / CONFIG).write_bytes(artifact._config_text(config, entry))
    with pytest.raises(CheckpointError, match=told):
        load_checkpoint(folder)


@pytest.mark.parametrize("path", ["blocks.0.att.key", "blocks.1.ffn.value"])
def test_a_layer_that_was_left_out_is_noticed(spikegpt, tmp_path, path):
    """It would run with float activations, and nothing would say so."""
    folder = shutil.copytree(spikegpt[1], tmp_path / "changed")
    config, _ = artifact.packed.read_config(folder)
    entries = config["spiking"]["inputs"]
    for one in entries:
        one["layers"] = [layer for layer in one["layers"] if layer != path]
    entry = json.loads((folder / CONFIG).read_text())["qslm"]
    (folder / CONFIG).write_bytes(artifact._config_text(config, entry))
    with pytest.raises(CheckpointError, match=f"leaves out {path}"):
        load_checkpoint(folder)


@pytest.mark.parametrize("more", [{"cache": None}, {"cache": {"bits": 4, "steps": None}}, {"caches": {}}])
def test_what_a_spikegpt_cannot_have_is_refused(spikegpt, tmp_path, more):
    folder = shutil.copytree(spikegpt[1], tmp_path / "changed")
    config, _ = artifact.packed.read_config(folder)
    entry = json.loads((folder / CONFIG).read_text())["qslm"]
    config["spiking"] |= more
    (folder / CONFIG).write_bytes(artifact._config_text(config, entry))
    with pytest.raises(CheckpointError, match=r"cache that is not one|not what a conversion writes"):
        load_checkpoint(folder)


def test_other_forms_are_not_packed(tmp_path):
    with pytest.raises(SpikeError, match="takes float, which is not packed"):
        packed("spikegpt", tmp_path, lambda seen: FloatActivations())


def test_an_empty_entry_is_refused(spikegpt, tmp_path):
    folder = shutil.copytree(spikegpt[1], tmp_path / "changed")
    config, _ = artifact.packed.read_config(folder)
    entry = json.loads((folder / CONFIG).read_text())["qslm"]
    (folder / CONFIG).write_bytes(artifact._config_text({**config, "spiking": None}, entry))
    with pytest.raises(CheckpointError, match="not what a conversion writes"):
        load_checkpoint(folder)


def test_a_spiking_model_is_not_studied(spikegpt):
    with pytest.raises(StudyError, match="has spiking layers"):
        Subject.of(load_checkpoint(spikegpt[1]))
