"""A packed conversion answers as the converted network, bit for bit, wherever it is opened."""

import json
import shutil

import pytest
import torch
from networks.bert import tiny_bert
from networks.llama import TYPES, tiny
from networks.sentences import Padded
from networks.spikegpt import random_spikegpt
from networks.tasks import NextToken

from qslm import artifact
from qslm.anatomy.find import find_anatomy
from qslm.conversion.convert import WEIGHTS, convert
from qslm.conversion.packing import SPIKES, round_rest
from qslm.conversion.rotate import rotate
from qslm.errors import CheckpointError, SpikeError, StudyError
from qslm.folders import CONFIG
from qslm.formats import Format
from qslm.loading.checkpoint import load_checkpoint
from qslm.loading.outline import read_outline
from qslm.models.causal import CausalLogits
from qslm.models.encoder import EncoderLogits
from qslm.spiking import Encoding, StaticSaliency, calibrate_ratio
from qslm.spiking.layer import FloatActivations, RoundedLayer, SpikeActivations, watch
from qslm.study.subject import Subject

STATIC = {"center": 0.0, "reach": 1.0, "ratio": 0.1, "spread": 0.1, "tokens": 10}


def network_of(kind):
    if kind == "spikegpt":
        return random_spikegpt(vocabulary=40, width=32, layers=2)
    pytest.importorskip("transformers", reason="needs pip install 'qslm[llama]'")
    if "bert" in kind:
        return EncoderLogits(tiny_bert(kind))
    return CausalLogits(tiny(kind.removesuffix(", rotated"), tied=kind != "gemma"))


def packed(kind, folder, form=lambda seen: SpikeActivations(Encoding(clip=0.9), 2.5), weights=WEIGHTS):
    model = network_of(kind)
    if "rotated" in kind:
        rotate(model.network)
    anatomy, config = find_anatomy(model), model.config.to_dict()
    task = Padded() if "bert" in kind else NextToken(model)
    found = convert(model, anatomy, task, {SPIKES: form}, weights=weights, tokens=500)
    round_rest(found, anatomy, config).write(folder)
    return model


@pytest.fixture(scope="module")
def spikegpt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spiking") / "packed"
    return packed("spikegpt", folder), folder


@pytest.mark.parametrize("kind", [*TYPES, "llama, rotated", "spikegpt", "bert", "distilbert"])
def test_a_packed_conversion_answers_as_the_converted_network(kind, tmp_path):
    model, ids = packed(kind, tmp_path), torch.arange(40).reshape(2, 20) % 32
    opened = load_checkpoint(tmp_path)
    with torch.inference_mode():
        assert torch.equal(opened.model(ids), model(ids))
    layers = [one for one in opened.model.modules() if isinstance(one, RoundedLayer)]
    assert len(layers) == (12 if "bert" in kind else 14) and all(
        isinstance(one.activations, SpikeActivations) for one in layers
    )
    forms = {id(one.activations) for one in layers}
    assert len(forms) == len({id(one.activations) for one in model.modules() if isinstance(one, RoundedLayer)})
    assert read_outline(tmp_path).file_bytes == opened.file_bytes == artifact.read(tmp_path).file_bytes


def test_groups_that_are_shifted_are_packed(tmp_path):
    """Rows of 32 and 40 inputs, the last group ragged."""
    model, ids = packed("spikegpt", tmp_path, weights=Format.parse("int3-sym-g32-p2")), torch.arange(40).reshape(2, 20)
    opened = load_checkpoint(tmp_path).model
    with torch.inference_mode():
        assert torch.equal(opened(ids), model(ids))
    layers = [one for one in opened.modules() if isinstance(one, RoundedLayer)]
    assert {str(one.rounded.format) for one in layers} == {"int3-sym-g32-p2-a4"}
    assert {tuple(one.neurons.shifts.shape) for one in layers} >= {(32, 1), (32, 2)}
    assert any(int(one.neurons.shifts.max()) > 0 for one in layers)


def test_the_file_holds_four_bits_a_weight_of_the_layers(spikegpt):
    _, folder = spikegpt
    found = artifact.read(folder)
    assert {str(one.format) for name, one in found.quantized.items() if ".att." in name and "weight" in name} == {
        "int4-sym-row-a4"
    }
    assert len(artifact.verify(folder)) == 5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda one: one.update(salient_bits=9), "9 for salient values"),
        (lambda one: one.update(salient_bits=True), "salient_bits is True"),
        (lambda one: one.update(clip="0.9"), "clip is '0.9'"),
        (lambda one: one.update(threshold=-1), "threshold"),
        (lambda one: one.update(threshold=10**400), "an encoding that is not one"),
        (lambda one: one.update(static=[]), "static has not the fields"),
        (lambda one: one.update(static={"center": 0.5}), "static has not the fields"),
        (lambda one: one.update(static={**STATIC, "reach": -1.0}), "reach is -1.0"),
        (lambda one: one.update(static={**STATIC, "center": None}), "center is None"),
        (lambda one: one.update(static={**STATIC, "tokens": 1.5}), "tokens is 1.5"),
        (lambda one: one.pop("clip"), "not what a conversion writes"),
        (lambda one: one.update(layers=["blocks.0.att"]), "which is no linear layer"),
        (lambda one: one.update(layers=[7]), "names '7'"),
        (lambda one: one.update(layers=["head"]), "leaves out"),
        (lambda one: one["layers"].append(one["layers"][0]), "which is no linear layer"),
        (lambda one: one["layers"].pop(), "leaves out"),
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


def test_a_static_saliency_is_packed_and_follows_another_workload_when_it_is_watched(tmp_path):
    def static(seen):
        return SpikeActivations(Encoding(), saliency=calibrate_ratio([seen.samples], 0.05))

    model, ids = packed("spikegpt", tmp_path, static), torch.arange(40).reshape(2, 20) % 32
    opened = load_checkpoint(tmp_path).model
    with torch.inference_mode():
        assert torch.equal(opened(ids), model(ids))
        monitors = watch(opened)
        assert len(monitors) == 14 and not watch(opened)
        opened(ids)  # fewer tokens than a window, so that nothing is judged
        assert not any(one.recalibrations for one in monitors)
        layers = [one for one in opened.modules() if isinstance(one, RoundedLayer)]
        layers[0](100 * torch.randn(600, 32, generator=torch.Generator().manual_seed(0)))
    assert [one.recalibrations for one in (layer.activations.saliency for layer in layers)] == [1] + 13 * [0]
    assert layers[0].activations.saliency.saliency.ratio == pytest.approx(0.05, abs=0.01)


def test_an_input_without_salient_values_is_not_watched(tmp_path):
    never = StaticSaliency(0.0, 1e9, 0.0, 0.0, 9)
    packed("spikegpt", tmp_path, lambda seen: SpikeActivations(Encoding(), saliency=never))
    assert watch(load_checkpoint(tmp_path).model) == []


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
