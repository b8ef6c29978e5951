"""The counters against event traces of small networks, counted one by one."""

import pytest
import torch
from networks.spikegpt import random_ids, random_spikegpt
from networks.tasks import NextToken
from torch import nn

from qslm.anatomy.find import find_anatomy
from qslm.conversion.convert import convert
from qslm.energy import FLOATING, INTEGER, RAN, SPARSE, Terms, firing, metered, work_shares
from qslm.energy.attention import Attention
from qslm.energy.layers import Elementwise, Norm
from qslm.energy.matrix import Matrix
from qslm.energy.operations import accumulate, mac, plain
from qslm.energy.rounded import Rounded
from qslm.formats import Format
from qslm.models.causal import CausalLogits
from qslm.models.encoder import EncoderLogits
from qslm.models.hadamard import Rotation, Turn
from qslm.models.neurons import IF, SpikeTrace
from qslm.spiking import (
    BIT_PLANES,
    FIRST_SPIKE,
    RATE,
    THERMOMETER,
    Encoding,
    Windows,
    encode,
    fire_events,
    thresholds,
)
from qslm.spiking.cache import CacheForm, hold
from qslm.spiking.layer import FloatActivations, Record, SpikeActivations
from qslm.spiking.rivals import AtomLike, RoundToNearest, SpikeLlmLike

TERMS = Terms(activations="float32")
ADD, COMPARE, MULTIPLY, RESCALE = (plain(kind, "float32") for kind in ("add", "compare", "multiply", "rescale"))
CODES = {
    "default": Windows(),
    "rate": Windows(RATE, RATE, RATE),
    "planes": Windows(BIT_PLANES, BIT_PLANES, BIT_PLANES),
    "first": Windows(FIRST_SPIKE, THERMOMETER, FIRST_SPIKE),
}


def counted(model, ids, calls=2):
    """The layers after some calls, by path, and the answer of the last."""
    with torch.inference_mode(), metered(model) as meter:
        for _ in range(calls):
            answer = model(ids)
    return {layer.path: layer for layer in meter.layers}, meter, answer


def inputs_of(model, ids):
    """What every matrix was given, by path, caught without the meter."""
    found = {}
    handles = [
        module.register_forward_pre_hook(lambda _, given, path=path: found.update({path: given[0]}))
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) or hasattr(module, "neurons")
    ]
    with torch.inference_mode():
        model(ids)
    for handle in handles:
        handle.remove()
    return found


def multiplications(x, out):
    """How often a machine that skips zeros multiplies: one product at a time."""
    count = 0
    for row in x.flatten(0, -2).tolist():
        for value in row:
            for _ in range(out):
                if value != 0:
                    count += 1
    return count


def test_a_spikegpt_is_counted_as_its_events_say():
    model = random_spikegpt(width=8, ffn_width=12, layers=2)
    ids = random_ids(model, 2, 5)
    layers, meter, answer = counted(model, ids)
    trace = SpikeTrace()
    with torch.inference_mode():
        assert torch.equal(model(ids, trace=trace), answer)
    assert (meter.unseen, meter.tokens) == ((), 20)
    neurons = [f"blocks.{i}.{part}_lif" for i in range(2) for part in ("att", "ffn")]
    for path, potentials, spikes in zip(neurons, trace.potentials, trace.spikes, strict=True):
        fired = sum(1 for h in potentials.flatten().tolist() if h >= 1)
        assert fired == sum(spikes.flatten().tolist()) > 0
        counts = layers[path].operations(RAN, TERMS).counts
        assert counts[accumulate("float32", "float32")] == 2 * fired
        assert counts[COMPARE] == 2 * potentials.numel() == counts[ADD] / 2 == counts[MULTIPLY]
        assert layers[path].rate == fired / potentials.numel()
        assert layers[path].operations(RAN, TERMS).bytes == {"state": 2 * 8 * potentials.numel()}
    given = inputs_of(model, ids)
    assert len(given) == 15
    for path, x in given.items():
        out = model.get_submodule(path).out_features
        work = layers[path].operations(RAN, TERMS)
        products = 2 * multiplications(x, out)
        assert work.counts == {mac("float32", "float32", "float32"): products}
        assert work.bytes == {
            "buffer": 4 * products,
            "activations": 2 * 4 * (x.numel() + 10 * out),
            "weights": 4 * model.get_submodule(path).weight.numel(),
        }
    value = layers["blocks.1.ffn.value"]
    assert 0 < value.zeros < value.inputs
    for block in range(2):
        positive = sum(1 for v in given[f"blocks.{block}.ffn.value"].flatten().tolist() if v > 0)
        assert layers[f"blocks.{block}.ffn"].positive == 2 * positive
    ones = sum(1 for token in ids.flatten().tolist() for w in model.emb.weight[token].tolist() if w >= 0)
    assert layers["emb"].rate == ones / (10 * 8)
    skipped, spikes = work_shares(meter.layers)
    assert 0 < skipped < 1 and spikes == 0


def test_the_step_form_is_counted_as_the_window():
    model = random_spikegpt(width=8, ffn_width=12)
    ids = random_ids(model, 1, 6)
    window, _, _ = counted(model, ids, calls=1)
    with torch.inference_mode(), metered(model) as meter:
        state = model.initial_state(1)
        for token in ids[0]:
            _, state = model.step(token[None], state)
    for layer in meter.layers:
        assert layer.operations(RAN, TERMS).counts == window[layer.path].operations(RAN, TERMS).counts


def test_a_mutant_of_the_counters_is_seen(monkeypatch):
    """The comparison of the first test can fail: one spike more, and it does."""
    import qslm.energy.metering as place

    true = place._neurons
    monkeypatch.setattr(
        place,
        "_COUNTERS",
        tuple((kind, _one_more(count) if count is true else count) for kind, count in place._COUNTERS),
    )
    with pytest.raises(AssertionError):
        test_a_spikegpt_is_counted_as_its_events_say()


def _one_more(count):
    from dataclasses import replace

    def more(*given):
        layer = count(*given)
        return replace(layer, spikes=layer.spikes + 1)

    return more


def test_a_matrix_of_spikes_accumulates():
    matrix = nn.Linear(6, 3)
    spikes = torch.tensor([[1.0, 0, -1, 0, 0, 1], [0, 0, 0, 0, 0, 1]])
    with torch.inference_mode(), metered(matrix) as meter:
        matrix(spikes)
        matrix(spikes + 0.5)
    (layer,) = meter.layers
    assert (layer.spikes, layer.zeros, layer.tokens) == (4, 8, 4)
    terms = Terms({"weight": Format.parse("int4-sym-row")}, "float16")
    counts = layer.operations(RAN, terms).counts
    assert counts[accumulate("int4", "float16")] == 4 * 3
    assert counts[mac("int4", "float16", "float16")] == 12 * 3
    assert (counts[RESCALE], counts[ADD]) == (4 * 3, 4 * 3)  # a scale an output; the bias
    assert layer.operations(FLOATING, terms).counts[mac("float16", "float16", "float16")] == 4 * 6 * 3


def test_groups_and_zero_points_are_counted():
    layer = Matrix(path="m", sites={"m.weight": (3, 80)}, tokens=2, out=3, width=80, zeros=10)
    affine = layer.operations(RAN, Terms({"m.weight": Format.parse("int4-g32")}))
    assert affine.counts[RESCALE] == 2 * 3 * 3  # groups of 32, 32 and 16
    assert affine.counts[ADD] == 2 * 3 * 2
    assert affine.counts[mac("int4", "float16", "float16")] == (160 - 10) * 3 + 2 * 3 * 3  # products, zero points
    assert affine.counts[plain("add", "float16")] == 160
    assert affine.bytes["weights"] == 120 + 9 * 2 + 5  # codes, scales, zero points
    dense = layer.operations(INTEGER, Terms({"m.weight": Format.parse("int4-sym-row")}))
    assert dense.counts[mac("int4", "int16", "int32")] == 160 * 3
    assert dense.counts[RESCALE] == 2 * 3 * 2 + 160  # by row and by step; and the inputs are rounded
    assert layer.operations(FLOATING, Terms()).bytes["weights"] == 2 * 240


@pytest.mark.parametrize("windows", CODES.values(), ids=CODES)
def test_a_converted_network_is_counted_as_its_trains_say(windows):
    model = random_spikegpt(vocabulary=40, width=8, layers=2, ffn_width=12)
    task = NextToken(model)
    form = lambda seen: SpikeActivations(Encoding(), 1.5, windows=windows)  # noqa: E731
    found = convert(model, find_anatomy(model), task, {"spikes": form}, tokens=200)
    record = found.layers["blocks.0.att.key"].record = Record()
    ids = task.batches("search")[0][:2, :-1]
    layers, meter, _ = counted(model, ids, calls=1)
    assert found.layers["blocks.0.att.key"].record is record and record.tokens == 0
    assert meter.unseen == ()
    salient = massive = 0
    for path, x in inputs_of(model, ids).items():
        if path == "head":
            continue
        layer, rounded = layers[path], found.layers[path]
        counts = rounded.activations.counts(x)
        out, events, steps, shifts, updates = rounded.weight.shape[0], 0, 0, 0, 0
        for window, train in enumerate(windows.trains(counts)):
            for token in train.spikes.unbind(1):  # (steps, width), one spike after the other
                if window and not token.any():
                    continue  # no time is spent on a later window that a token does not need
                shifted = int(window == len(list(windows.trains(counts))) - 1 and counts.has_massive)
                for spikes in token.tolist():
                    steps += train.code.adds_each_step
                    updates += 1 + (train.code is FIRST_SPIKE)
                    shifts += train.code is BIT_PLANES
                    for spike in spikes:
                        events += spike != 0
                        shifts += shifted * (spike != 0)
        work = layer.operations(RAN, TERMS)
        assert work.counts[accumulate("int4", "int32")] == out * events
        assert work.bytes["buffer"] == out * events / 2
        assert work.bytes["sums"] == 8 * out * updates
        assert layer.operations(INTEGER, TERMS).bytes["buffer"] == out * x.numel() / 2
        assert work.counts.get(plain("add", "int32"), 0) == out * steps
        assert work.counts.get(plain("shift", "int32"), 0) == out * shifts
        salient += layer.salient
        massive += layer.massive
        dense = layer.operations(INTEGER, TERMS).counts
        assert dense[mac("int4", "int4", "int32")] == (layer.inputs - int(counts.salient.sum())) * out
        assert dense.get(mac("int4", "int8", "int32"), 0) == int(counts.salient.sum()) * out
        sparse = layer.operations(SPARSE, TERMS).counts
        live = sum(1 for token in counts.counts.tolist() for q in token if q)
        assert sum(count for one, count in sparse.items() if one.kind == "mac") == live * out
        for one in (work.counts, dense, sparse):
            assert one[RESCALE] == 2 * layer.tokens * out + x.numel()  # by step and row; the inputs' own
        assert work.counts[COMPARE] == (1 + 4) * x.numel()
        assert work.bytes["weights"] == layer.operations(INTEGER, TERMS).bytes["weights"]
        assert work.bytes["weights"] == -(-rounded.weight.numel() // 2) + 2 * out
        assert 0 < layer.rate < 1
    assert salient > 0


def test_massive_values_are_shifted():
    layer, x = small_layer(), torch.ones(3, 8)
    x[1, 2] = 40_000.0
    with torch.inference_mode(), metered(layer) as meter:
        layer(x)
    (found,) = meter.layers
    assert found.massive == 1
    assert found.operations(RAN, TERMS).counts[plain("shift", "int32")] == 4 * (
        7 + 2
    )  # planes of 127; the 2 bits of 68


def small_layer(activations=None):
    from qslm.quantizers import round_site
    from qslm.spiking.layer import RoundedLayer

    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    rounded = round_site(weight, Format.parse("int4-sym-row"), "minmax", name="weight")
    return RoundedLayer(rounded, None, activations or SpikeActivations(Encoding()))


FORMS = {
    "nearest": (RoundToNearest(), {4: 8}, 1),
    "atom": (AtomLike(torch.arange(8.0), 0.25, 3), {4: 6, 8: 2}, 3),
    "spikellm": (SpikeLlmLike(torch.arange(8.0), 0.25), {4: 6, 5: 2}, 2),
}


@pytest.mark.parametrize(("form", "columns", "groups"), FORMS.values(), ids=FORMS)
def test_rivals_multiply_by_columns_and_dequantize_by_groups(form, columns, groups):
    layer = small_layer(form)
    with torch.inference_mode(), metered(layer) as meter:
        layer(torch.randn(5, 8))
    (found,) = meter.layers
    counts = found.operations(RAN, TERMS).counts
    macs = {int(one.operands[1][3:]): count for one, count in counts.items() if one.operands[0] == "int4"}
    assert macs == {bits: 5 * 4 * count for bits, count in columns.items()}
    assert counts[RESCALE] == 5 * 4 * (groups + 1) + 5 * 8
    assert counts == found.operations(INTEGER, TERMS).counts


def test_float_activations_meet_codes():
    layer = small_layer(FloatActivations())
    x = torch.randn(5, 8)
    x[0, :3] = 0
    with torch.inference_mode(), metered(layer) as meter:
        layer(x)
    counts = meter.layers[0].operations(RAN, Terms()).counts
    assert counts == {mac("int4", "float16", "float16"): 37 * 4, RESCALE: 20}


def test_what_siblings_read_is_encoded_once():
    layers = nn.ModuleList([small_layer(), small_layer()])
    layers[1].activations = layers[0].activations
    x = torch.randn(5, 8)
    with torch.inference_mode(), metered(layers) as meter:
        for layer in (*layers, *layers):
            layer(x)
        layers[1](x.clone())
    first, second = meter.layers
    assert (first.encoded, second.encoded) == (40, 40)
    assert (first.tokens, second.tokens) == (10, 15)


def test_neurons_that_fire_by_their_threshold_need_no_rescaling():
    encoding = Encoding()
    counts = encode(torch.randn(3, 8, generator=torch.Generator().manual_seed(3)), encoding)
    codes, scales = torch.randint(-7, 8, (4, 8), generator=torch.Generator().manual_seed(4)), torch.full((4,), 0.1)
    fired = fire_events(codes, Windows().trains(counts), thresholds(scales, counts.step, 0.2), most=7)
    work = firing(3 * 4, fired.steps, fired.spikes)
    assert fired.spikes >= int(fired.counts.abs().sum()) > 0
    assert work.counts == {plain("compare", "int32"): 12 * fired.steps, plain("add", "int32"): fired.spikes}
    assert work.total("rescale") == 0


def test_an_integrator_subtracts_its_threshold():
    neuron = IF()
    with torch.inference_mode(), metered(neuron) as meter:
        spikes, _ = neuron(torch.full((1, 6, 2), 0.5))
    fired = int(spikes.sum())
    counts = meter.layers[0].operations(RAN, TERMS).counts
    assert fired == 6
    assert counts == {COMPARE: 12, ADD: 12 + fired, accumulate("float32", "float32"): fired}
    assert meter.layers[0].operations(INTEGER, TERMS).counts == {ADD: 12}


def test_a_llama_is_counted_with_its_cache():
    pytest.importorskip("transformers", reason="needs pip install 'qslm[llama]'")
    from networks.llama import tiny

    model = CausalLogits(tiny("llama"))
    layers, meter, _ = counted(model, torch.arange(7).reshape(1, 7), calls=1)
    attention = [layer for layer in layers.values() if isinstance(layer, Attention)]
    assert (len(attention), meter.unseen, meter.tokens) == (2, (), 7)
    seen = sum(1 for query in range(7) for key in range(7) if key <= query)
    work = attention[0].operations(RAN, TERMS)
    assert work.counts[mac("float16", "float16", "float16")] == 2 * 4 * 6 * seen
    assert work.counts[plain("exponential", "float32")] == 6 * seen
    assert work.bytes["state"] == (7 + seen) * 2 * 2 * 2 * 4
    assert attention[0].in_windows(7) == attention[0] and attention[0].in_windows(1024).pairs == 7 * 1025 // 2
    norms = sum(1 for path in layers if "norm" in path)
    assert norms == 5 and sum(isinstance(one, Matrix) for one in layers.values()) == 15


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_an_encoder_sees_all_of_a_sentence_and_rotates_nothing(kind):
    pytest.importorskip("transformers", reason="needs pip install 'qslm[llama]'")
    from networks.bert import tiny_bert

    layers, meter, _ = counted(EncoderLogits(tiny_bert(kind)), torch.arange(14).reshape(2, 7), calls=1)
    attention = [layer for layer in layers.values() if isinstance(layer, Attention)]
    assert (len(attention), meter.unseen, meter.tokens) == (2, (), 14)
    work = attention[0].operations(RAN, TERMS)
    assert work.counts[mac("float16", "float16", "float16")] == 2 * 4 * 6 * 2 * 7 * 7
    assert work.counts[plain("exponential", "float32")] == 6 * 2 * 7 * 7
    assert work.total("mac") == 2 * 4 * 6 * 2 * 7 * 7  # none of a rotation
    assert attention[0].in_windows(7) == attention[0] and attention[0].in_windows(1024).pairs == 14 * 1024
    assert work.counts[plain("multiply", "float32")] == 14 * 24
    assert sum(isinstance(one, Norm) for one in layers.values()) == 5
    smooth = [one for one in layers.values() if isinstance(one, Elementwise)]
    assert len(smooth) == {"bert": 3, "distilbert": 2}[kind]  # GELUs, and the tanh of a pooler
    pooled = [one for one in layers.values() if isinstance(one, Matrix) and one.tokens == 2]
    assert len(pooled) == 2 and sum(isinstance(one, Matrix) for one in layers.values()) == 14


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_cache_of_integers_moves_its_bits_and_its_steps(dynamic):
    pytest.importorskip("transformers", reason="needs pip install 'qslm[llama]'")
    from networks.llama import tiny
    from networks.tasks import NextToken

    model = CausalLogits(tiny("llama"))
    forms = {"spikes": lambda seen: SpikeActivations(Encoding())}
    convert(model, find_anatomy(model), NextToken(model), forms, tokens=200)
    path = "network.model.layers.{}.self_attn.v_proj"
    hold(model, CacheForm(4, None if dynamic else {path.format(one): (0.25, 0.5) for one in range(2)}))
    layers, _, _ = counted(model, torch.arange(7).reshape(1, 7), calls=1)
    seen, heads, kept, width = 28, 6, 2, 4
    attention = layers["network.model.layers.0.self_attn"]
    work = attention.operations(RAN, TERMS)
    entry = kept * (2 * width * 4 / 8 + 4 + 4 / 8 + 4 * dynamic)
    assert work.bytes["state"] == (7 + seen) * entry
    assert work.counts[mac("float16", "int4", "float16")] == (2 * width + 1) * heads * seen  # and a zero point
    assert mac("float16", "float16", "float16") not in work.counts
    mixed = heads * seen if dynamic else 7 * heads * width
    assert work.counts[RESCALE] == heads * seen + mixed + 7 * kept * width  # the last of rounded keys
    before = Attention(path="", tokens=7, heads=heads, kv_heads=kept, head_dim=width, pairs=seen)
    added = work.counts[ADD] - before.operations(RAN, TERMS).counts[ADD]
    assert added == 7 * kept * width + 7 * (heads + kept) * width * 2  # of rounding, and of butterflies over 4 columns
    assert attention.operations(FLOATING, TERMS).counts == before.operations(FLOATING, TERMS).counts

    value, key = layers[path.format(0)], layers[path.format(0).replace("v_proj", "k_proj")]
    assert (value.fired_bits, key.fired_bits) == (4, None) and 0 < value.fired_spikes <= 7 * 8 * 7
    fired, plain_ = value.operations(RAN, TERMS), key.operations(RAN, TERMS)
    assert fired.counts[plain("compare", "int32")] == 7 * 8 * 7
    assert fired.counts.get(RESCALE, 0) - value.encoded == (2 * 7 * 8 if dynamic else 0)
    assert plain_.counts[RESCALE] - key.encoded == 2 * 7 * 8
    assert fired.bytes["activations"] == plain_.bytes["activations"] - 7 * 8 * (4 - 0.5)


def test_the_bits_stay_and_the_hooks_go():
    model = random_spikegpt()
    ids = random_ids(model, 1, 4)
    with torch.inference_mode():
        before = model(ids)
    _, meter, answer = counted(model, ids)
    assert torch.equal(before, answer)
    found = {layer.path: layer for layer in meter.layers}
    model(ids)
    assert {layer.path: layer for layer in meter.layers} == found
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_is_not_known_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.odd = nn.Linear(2, 2), nn.Bilinear(2, 2, 2)

        def forward(self, x):
            return self.odd(self.layer(x), x)

    model = Odd()
    with torch.inference_mode(), metered(model) as meter:
        model(torch.ones(1, 2))
    assert meter.unseen == ("odd",)


def test_a_rounded_layer_prints_its_rate_of_time_steps():
    layer = Rounded(path="x", out=1, width=4, format=Format.parse("int4-sym-row"), kind="spikes", bits=4, wide_bits=8)
    assert layer.rate == 0


def test_a_rotation_that_is_applied_online_is_counted():
    rotation = Rotation.of(24)
    model = nn.Sequential(nn.Linear(24, 24, bias=False), Turn(rotation))
    layers, meter, _ = counted(model, torch.randn(5, 24), calls=1)
    work = layers["1"].operations(RAN, TERMS)
    assert work.counts == {ADD: 5 * rotation.additions, plain("multiply", "float32"): 5 * 24} and meter.unseen == ()
