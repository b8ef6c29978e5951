"""Conversion: the weights, the forms of activations, and what is refused."""

import pytest
import torch
from networks.llama import TYPES, tiny
from networks.spikegpt import random_spikegpt
from networks.tasks import NextToken
from torch import nn

from qslm.anatomy.find import find_anatomy
from qslm.conversion.convert import convert
from qslm.errors import CheckpointError, FormatError, SpikeError
from qslm.formats import Format
from qslm.models.causal import CausalLogits
from qslm.spiking import Encoding
from qslm.spiking.layer import FLOAT, FloatActivations, Record, SpikeActivations
from qslm.spiking.rivals import AtomLike, RoundToNearest, SpikeLlmLike, spikellm_saliency

FORMS = {
    "w4": lambda seen: FloatActivations(),
    "spikes": lambda seen: SpikeActivations(Encoding()),
    "nearest": lambda seen: RoundToNearest(),
    "atom": lambda seen: AtomLike(seen.statistics.moment.diagonal(), 0.0625, 8),
    "spikellm": lambda seen: SpikeLlmLike(
        sum(spikellm_saliency(weight, seen.statistics.moment) for weight in seen.weights.values())
    ),
}


def llama(kind="llama"):
    pytest.importorskip("transformers", reason="needs pip install 'qslm[llama]'")
    return CausalLogits(tiny(kind))


def spikegpt():
    return random_spikegpt(vocabulary=40, width=32, layers=2)


def converted(model, **options):
    task = NextToken(model)
    return convert(model, find_anatomy(model), task, FORMS, tokens=1000, **options), task.batches("search")[0]


def answers(model, batch):
    with torch.inference_mode():
        return model(batch[:, :-1])


@pytest.mark.parametrize("kind", [*TYPES, "spikegpt"])
def test_the_float_form_is_the_network_with_rounded_weights(kind):
    model, same = (spikegpt() if kind == "spikegpt" else llama(kind) for _ in range(2))
    found, batch = converted(model)
    linear = {path: one for path, one in same.named_modules() if isinstance(one, nn.Linear) and path in found.layers}
    assert linear.keys() == found.layers.keys() and len(linear) == 14
    for path, layer in linear.items():
        assert (layer.weight - found.layers[path].weight).abs().mean() < 0.2 * layer.weight.abs().mean()
        layer.weight.data = found.layers[path].weight
    assert torch.equal(answers(model, batch), answers(same, batch))


@pytest.mark.parametrize("kind", ["llama", "spikegpt"])
@pytest.mark.parametrize("form", list(FORMS)[1:])
def test_every_form_computes_its_rounded_inputs_times_the_rounded_weights(kind, form):
    model = spikegpt() if kind == "spikegpt" else llama()
    found, batch = converted(model)
    found.use(form)
    seen = []
    hooks = [
        layer.register_forward_hook(lambda layer, given, output: seen.append((layer, given[0], output)))
        for layer in found.layers.values()
    ]
    answers(model, batch)
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(found.layers)
    for layer, x, output in seen:
        rows, activations = x.flatten(0, -2), layer.activations
        if form == "spikes":
            rounded = activations.counts(rows).values()
        elif form == "nearest":
            step = rows.abs().amax(1, keepdim=True) / 7
            rounded = (rows / step.masked_fill(step == 0, 1)).round() * step
        else:
            rounded = activations.rounded(rows)
        expected = torch.nn.functional.linear(rounded.double(), layer.weight.double(), layer.bias)
        torch.testing.assert_close(output.flatten(0, -2).double(), expected, atol=1e-4, rtol=1e-4)


def test_layers_that_read_the_same_share_a_form_and_an_encoding(monkeypatch):
    found, batch = converted(llama())
    shared = {path.rpartition(".")[2]: id(one) for path, one in found.forms["spikes"].items() if "layers.0" in path}
    assert shared["q_proj"] == shared["k_proj"] == shared["v_proj"] != shared["o_proj"]
    assert shared["gate_proj"] == shared["up_proj"] != shared["down_proj"]
    found.use("spikes")
    calls = []
    encode = SpikeActivations.counts.__globals__["encode"]
    monkeypatch.setattr("qslm.spiking.layer.encode", lambda *given: calls.append(1) or encode(*given))
    answers(found.model, batch)
    assert len(calls) == 2 * 4


def test_records_count_what_went_in():
    found, batch = converted(llama())
    for form in FORMS:
        found.use(form)
        for layer in found.layers.values():
            layer.record = Record()
        answers(found.model, batch)
        tokens = batch[:, :-1].numel()
        for path, layer in found.layers.items():
            width = layer.neurons.codes.shape[1]
            record = layer.record
            assert record.tokens == tokens, path
            bits = 8 * record.stored_bytes / (tokens * width)
            assert (bits == 32) if form == "w4" else (4 < bits < 16), (form, path, bits)
            assert (record.salient > 0) == (form in ("atom", "spikellm")) or form == "spikes"
            assert (record.cost.spikes > 0) == (form == "spikes")


def test_what_cannot_be_converted_is_refused():
    for weights in ("int4-sym-g32", "int4-sym-tensor"):
        with pytest.raises(SpikeError, match="have not one scale a row"):
            converted(spikegpt(), weights=Format.parse(weights))
    with pytest.raises(SpikeError, match="do not fit into int8"):
        converted(spikegpt(), weights=Format.parse("int10-sym-row"))
    model = spikegpt()
    model.blocks[1].att.spare = nn.Linear(4, 4)
    with pytest.raises(CheckpointError, match=r"blocks.1 calls none of att.spare"):
        converted(model)
    model = spikegpt()
    model.blocks[0].ffn.key.weight.data[0, 0] = float("nan")
    with pytest.raises((FormatError, SpikeError), match=r"not finite|NaN"):
        converted(model)


def test_nan_in_activations_is_refused():
    found, batch = converted(llama())
    found.use("spikes")
    found.model.network.model.embed_tokens.weight.data[:] = float("nan")
    with pytest.raises(SpikeError, match="are NaN"):
        answers(found.model, batch)


def test_the_same_text_gives_the_same_weights():
    first, second = (converted(spikegpt())[0] for _ in range(2))
    for path, layer in first.layers.items():
        assert torch.equal(layer.neurons.codes, second.layers[path].neurons.codes)
    assert all(layer.activations is not FLOAT for layer in first.layers.values())
