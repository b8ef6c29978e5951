"""A KV cache of integers: what attention sees, token by token and at once, and what is packed of it."""

import json

import pytest
import torch
from networks.llama import TYPES, tiny
from networks.tasks import NextToken

from qslm import artifact
from qslm.anatomy.find import find_anatomy
from qslm.conversion.cache import calibrate_cache
from qslm.conversion.convert import convert
from qslm.conversion.leaving import COUNTS, OTHERS, shares, taker
from qslm.conversion.packing import SPIKES, round_rest
from qslm.errors import CheckpointError, SpikeError
from qslm.folders import CONFIG
from qslm.loading.checkpoint import load_checkpoint
from qslm.models.causal import CausalLogits
from qslm.spiking import Encoding
from qslm.spiking.cache import DYNAMIC, NEXT_STEPS, STATIC, CacheForm, hold
from qslm.spiking.layer import Record, SpikeActivations

pytest.importorskip("transformers", reason="needs pip install 'qslm[llama]'")

IDS = torch.arange(40).reshape(2, 20) % 32
VALUES = [f"network.model.layers.{layer}.self_attn.v_proj" for layer in range(2)]


def converted(kind="llama"):
    """A network, its task, and what packs it."""
    model = CausalLogits(tiny(kind, tied=kind != "gemma"))
    anatomy, config, task = find_anatomy(model), model.config.to_dict(), NextToken(model)
    form = {SPIKES: lambda seen: SpikeActivations(Encoding(clip=0.9), 2.5)}
    return model, task, round_rest(convert(model, anatomy, task, form, tokens=500), anatomy, config)


@pytest.mark.parametrize("next_step", NEXT_STEPS)
@pytest.mark.parametrize("kind", TYPES)
def test_token_by_token_it_answers_as_whole_windows_do(kind, next_step):
    model, task, _ = converted(kind)
    with torch.inference_mode():
        numbers = model(IDS)
        hold(model, calibrate_cache(model, task, 4, next_step))
        whole, kept, found = model(IDS), None, []
        for token in IDS[0]:
            logits, kept = model.advance(token[None], kept)
            found.append(logits)
        torch.testing.assert_close(torch.stack(found), whole[0], atol=1e-4, rtol=1e-4)
        assert not torch.allclose(whole, numbers, atol=1e-2)
        hold(model, None)
        assert torch.equal(model(IDS), numbers)


def test_static_values_in_the_cache_are_counts_times_the_step_of_their_head():
    model, task, _ = converted()
    form = calibrate_cache(model, task, 4)
    hold(model, form)
    _, kept = model.advance(IDS[0], None)
    for layer, path in zip(kept.layers, VALUES, strict=True):
        steps = torch.tensor(form.steps[path])[:, None, None]
        counts = (layer.values / steps).round()
        assert torch.equal(layer.values, counts * steps) and 3 <= int(counts.abs().max()) <= 7


def test_a_window_that_slides_forgets_integers_as_it_forgets_numbers():
    network = tiny("mistral")
    network.config.sliding_window = 6
    model = CausalLogits(network)
    task = NextToken(model)
    found = convert(model, find_anatomy(model), task, {SPIKES: lambda seen: SpikeActivations(Encoding())}, tokens=500)
    hold(found.model, calibrate_cache(model, task, 4))
    with torch.inference_mode():
        whole, kept, answers = model(IDS), None, []
        for token in IDS[0]:
            logits, kept = model.advance(token[None], kept)
            answers.append(logits)
    assert kept.layers[0].keys.shape[2] == 5
    torch.testing.assert_close(torch.stack(answers), whole[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("next_step", NEXT_STEPS)
def test_a_packed_cache_answers_to_the_bit(next_step, tmp_path):
    model, task, packable = converted()
    form = calibrate_cache(model, task, 4, next_step)
    hold(model, form)
    packable.with_cache(form).write(tmp_path)
    opened = load_checkpoint(tmp_path).model
    with torch.inference_mode():
        assert torch.equal(opened(IDS), model(IDS))
        assert opened.key_bits == 4
        for token in (IDS[0], IDS[1]):
            assert torch.equal(opened.advance(token, None)[0], model.advance(token, None)[0])


def test_outputs_that_leave_as_counts_are_counted():
    model, task, _ = converted()
    hold(model, calibrate_cache(model, task, 4))
    layers = {path: one for path, one in model.named_modules() if hasattr(one, "firing")}
    for layer in layers.values():
        layer.record = Record()
    with torch.inference_mode():
        model(IDS)
    outputs = {path: (one.record.tokens * len(one.neurons.codes), one.record.fired) for path, one in layers.items()}
    assert {path for path, (_, fired) in outputs.items() if fired} == set(VALUES)
    found = shares(outputs)
    widths = {"q": 24, "k": 8, "v": 8, "o": 24, "gate": 40, "up": 40, "down": 24}
    total = sum(widths.values())
    assert found == {
        COUNTS: 8 / total,
        "RoPE": 32 / total,
        "residual additions, before a norm": 48 / total,
        "SiLU or GELU, and its product": 80 / total,
    }
    assert all(layers[path].record.fired_spikes > 0 for path in VALUES)


def test_what_takes_outputs_is_named_by_the_layer():
    assert taker("blocks.0.att.receptance") == "sigmoids, and their products"
    assert taker("layers.1.self_attn.q_proj") == "RoPE"
    assert taker("layer.0.attention.self.query") == "products of queries and keys"
    assert taker("gate") == taker("encoder.gate") == OTHERS


CHANGES = [
    (lambda one: one.update(bits=9), "KV cache of 9 bits"),
    (lambda one: one.update(bits=True), "KV cache of True bits"),
    (lambda one: one.update(bits="4"), "no bits and steps"),
    (lambda one: one.pop("steps"), "no bits and steps"),
    (lambda one: one.update(more=1), "no bits and steps"),
    (lambda one: one["steps"].pop(VALUES[0]), r"layers.0.self_attn.v_proj' has steps"),
    (lambda one: one["steps"].update(other=[1.0, 1.0]), "'other' has steps"),
    (lambda one: one["steps"].update({VALUES[0]: [1.0]}), "next steps of 2 heads"),
    (lambda one: one["steps"].update({VALUES[0]: [1.0, -1.0]}), "not above 0"),
    (lambda one: one["steps"].update({VALUES[0]: [1.0, 1e300]}), "not above 0|overflow"),
    (lambda one: one["steps"].update({VALUES[0]: [1.0, 10**400]}), "not one"),
    (lambda one: one["steps"].update({VALUES[0]: [1.0, None]}), "steps that are no numbers"),
    (lambda one: one["steps"].update({VALUES[0]: "11"}), "steps that are no numbers"),
]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    model, task, packable = converted()
    folder = tmp_path_factory.mktemp("cache")
    packable.with_cache(calibrate_cache(model, task, 4)).write(folder)
    return folder


@pytest.mark.parametrize(("change", "told"), CHANGES)
def test_a_cache_that_was_changed_is_refused(packed, change, told):
    config, _ = artifact.packed.read_config(packed)
    before = (packed / CONFIG).read_bytes()
    entry = json.loads(before)["qslm"]
    change(config["spiking"]["cache"])
    (packed / CONFIG).write_bytes(artifact._config_text(config, entry))
    try:
        with pytest.raises(CheckpointError, match=told):
            load_checkpoint(packed)
    finally:
        (packed / CONFIG).write_bytes(before)


def test_steps_of_other_layers_leave_the_network_as_it_was():
    model, _, _ = converted()
    with pytest.raises(SpikeError, match="'elsewhere' has steps"):
        hold(model, CacheForm(4, {**dict.fromkeys(VALUES, (1.0, 1.0)), "elsewhere": (1.0,)}))
    assert model.key_bits is None
    with pytest.raises(CheckpointError, match="is not spiking"):
        hold(CausalLogits(tiny()), CacheForm(4))


def test_static_steps_follow_the_text_and_dynamic_ones_need_none():
    model, task, _ = converted()
    assert calibrate_cache(model, task, 4, DYNAMIC) == CacheForm(4)
    four, eight = (calibrate_cache(model, task, bits, STATIC) for bits in (4, 8))
    assert four == calibrate_cache(model, task, 4)
    for path in VALUES:
        assert all(one > 4 * other for one, other in zip(four.steps[path], eight.steps[path], strict=True))
