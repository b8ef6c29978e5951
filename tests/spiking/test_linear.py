from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm.errors import SpikeError
from qslm.spiking import (
    BIT_PLANES,
    FIRST_SPIKE,
    FRACTION,
    RATE,
    THERMOMETER,
    Encoding,
    SpikeCounts,
    SpikingLinear,
    Windows,
    encode,
    fire,
    fire_events,
    from_integers,
    normal_step,
    power_of_two_groups,
    salient,
    static_step,
    thresholds,
)
from qslm.spiking import linear as module
from qslm.spiking.linear import fixed_point

codes = st.sampled_from([RATE, THERMOMETER, BIT_PLANES, FIRST_SPIKE])
seeds = st.integers(0, 2**32)


def random_layer(out: int, width: int, seed: int, most: int = 7, bias: bool = False) -> SpikingLinear:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(-most, most + 1, (out, width), generator=generator, dtype=torch.int8)
    scales = torch.rand(out, generator=generator) * 0.1 + 1e-3
    return SpikingLinear(weights, scales, bias=torch.randn(out, generator=generator) if bias else None)


def random_counts(tokens: int, width: int, seed: int, encoding: Encoding | None = None) -> SpikeCounts:
    """Counts of all three populations."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=generator)
    x *= 10 ** (3 * torch.rand(tokens, width, generator=generator) ** 6)
    return encode(x, encoding or Encoding())


def exact(layer: SpikingLinear, counts: SpikeCounts) -> torch.Tensor:
    return counts.integers().long() @ layer.synapses.long().T


def by_fractions(potential: int, threshold: int, offset: int = 0) -> int:
    """round(U / theta), half away from zero, by Python's integers."""
    charged = (potential << FRACTION) + offset
    count = (2 * abs(charged) + threshold) // (2 * threshold)
    return count if charged >= 0 else -count


@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 12), seeds, st.sampled_from([1, 7, 127]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_potentials_are_exact(tokens, width, out, seed, most, massive):
    layer, counts = random_layer(out, width, seed, most), random_counts(tokens, width, seed)
    if not massive:
        counts = from_integers(counts.counts.long(), 1.0, counts.encoding)
    expected = exact(layer, counts)
    assert torch.equal(layer.potentials(counts), expected)
    assert torch.equal(layer.outputs(counts), layer.values(expected, counts.step))


@pytest.mark.parametrize("shape", [(1, 1, 1), (17, 1, 3), (2, 2, 2), (1, 576, 33), (70, 31, 65), (300, 96, 1024)])
@pytest.mark.parametrize("most", [7, 127])
def test_every_product_gives_the_same_potentials(shape, most, monkeypatch):
    """int8, float32 and float64; also of shapes at which the int8 product of PyTorch fails without a word."""
    tokens, width, out = shape
    layer, counts = random_layer(out, width, 1, most), random_counts(tokens, width, 2)
    expected = exact(layer, counts)
    assert torch.equal(layer.potentials(counts), expected)
    monkeypatch.setattr(module, "_int8_is_exact", lambda: False)
    assert torch.equal(layer.potentials(counts), expected)
    sliced = replace(counts, counts=counts.counts.T.contiguous().T)
    assert torch.equal(layer.potentials(sliced), expected)


def test_the_product_is_chosen_by_the_bound(monkeypatch):
    """127 * 127 * 1,040 is below 2^24 and 127 * 127 * 1,041 above it; at the border both are exact."""
    monkeypatch.setattr(module, "_int8_is_exact", lambda: False)
    for width, used in ((1040, torch.float32), (1041, torch.float64)):
        layer = SpikingLinear(torch.full((2, width), 127, dtype=torch.int8), torch.ones(2))
        assert (127 * layer.reach < 1 << 24) == (used == torch.float32)
        counts = from_integers(torch.full((3, width), 127), 1.0, Encoding())
        assert (layer.potentials(counts) == 127 * 127 * width).all()
        assert used in layer._synapses


def test_an_inexact_int8_product_would_be_noticed(monkeypatch):
    """A processor that adds pairs of products in 16 bits is not trusted."""
    assert isinstance(module._int8_is_exact(), bool)
    true_product = torch._int_mm

    def saturating(counts, weights):
        pairs = [true_product(counts[:, k : k + 2].clone(), weights[k : k + 2].clone()) for k in range(0, 64, 2)]
        return sum(pair.clamp(-(2**15), 2**15 - 1) for pair in pairs)

    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert not module._int8_is_exact.__wrapped__()


@given(
    st.lists(st.tuples(st.integers(-(2**40), 2**40), st.integers(1, 2**50), st.integers(-(2**50), 2**50)), min_size=1)
)
@settings(max_examples=200, deadline=None)
def test_firing_rounds_half_away_from_zero(drawn):
    potentials, thresholds_, offsets = (torch.tensor(column)[:, None] for column in zip(*drawn, strict=True))
    found = fire(potentials, thresholds_, offsets=offsets)
    assert found.flatten().tolist() == [by_fractions(*one) for one in drawn]
    assert fire(potentials, thresholds_, 7, offsets).flatten().tolist() == [
        max(-7, min(7, by_fractions(*one))) for one in drawn
    ]


def test_ties():
    potentials = torch.tensor([[1, -1, 3, -3, 2, 5]])
    assert fire(potentials, torch.full((1, 6), 2 << FRACTION)).tolist() == [[1, -1, 2, -2, 1, 3]]
    events = fire_events(
        torch.tensor([[1], [-1], [3], [-3], [2], [5]]),
        Windows().trains(from_integers(torch.tensor([[1]]), 1.0, Encoding())),
        torch.full((1, 6), 2 << FRACTION),
    )
    assert events.counts.tolist() == [[1, -1, 2, -2, 1, 3]]


@given(
    codes, codes, codes, st.integers(1, 4), st.integers(1, 10), st.integers(1, 6), seeds, st.booleans(),
    st.sampled_from([None, 1, 7, 127]), st.floats(0.05, 3),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_event_by_event_equals_closed_form(normal, longer, massive, tokens, width, out, seed, bias, most, ratio):
    encoding = Encoding(4, 6)
    layer, counts = random_layer(out, width, seed, bias=bias), random_counts(tokens, width, seed, encoding)
    potentials = layer.potentials(counts)
    step = max(float(layer.values(potentials, counts.step).abs().mean()) * ratio, 1e-6)
    theta, offsets = thresholds(layer.scales, counts.step, step), layer.offsets(counts.step)
    fired = fire(potentials, theta, most, offsets)
    events = fire_events(layer.synapses, Windows(normal, longer, massive).trains(counts), theta, most, offsets)
    assert torch.equal(events.counts, fired)
    assert events.spikes >= int(fired.abs().sum())


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), seeds, st.integers(1, 12))
@settings(max_examples=150, deadline=None)
def test_small_thresholds_are_full_of_ties(tokens, width, out, seed, theta):
    """Whole thresholds and small integers: half of the even ones tie, and early spikes must be taken back."""
    generator = torch.Generator().manual_seed(seed)
    counts = from_integers(torch.randint(-7, 8, (tokens, width), generator=generator), 1.0, Encoding())
    layer = random_layer(out, width, seed)
    at = torch.full((tokens, out), theta << FRACTION)
    events = fire_events(layer.synapses, Windows(THERMOMETER).trains(counts), at)
    assert torch.equal(events.counts, fire(layer.potentials(counts), at))


@given(st.integers(2, 5), st.integers(2, 8), seeds, st.booleans(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_stacked_layers_are_equal_bit_for_bit(tokens, width, seed, bias, second_pass):
    """Three layers; what one fires is the input of the next; the step is static, or found in a second pass."""
    encoding = Encoding(4, 6)
    events = closed = random_counts(tokens, width, seed, encoding)
    for depth in range(3):
        layer = random_layer(width, width, seed + depth, bias=bias)
        outputs = layer.outputs(closed)
        if bool((outputs == 0).all()):
            return
        step = normal_step(outputs, salient(outputs), encoding) if second_pass else static_step([outputs], encoding)
        theta, offsets = thresholds(layer.scales, closed.step, step), layer.offsets(closed.step)
        most = encoding.most_salient
        fired = fire(layer.potentials(closed), theta, most, offsets)
        arrived = fire_events(layer.synapses, Windows().trains(events), theta, most, offsets)
        closed = from_integers(fired, step, encoding)
        events = from_integers(arrived.counts, step, encoding)
        assert torch.equal(events.counts, closed.counts)
        assert torch.equal(events.integers(), closed.integers())
        assert torch.equal(events.step, closed.step)


@pytest.mark.parametrize("bias", [False, True])
def test_spike_counts_are_the_requantized_output(bias):
    """q' s' against the output in float64: half a step off at most, up to the 2^-17 of the fixed-point threshold."""
    layer, counts = random_layer(32, 64, 3, bias=bias), random_counts(50, 64, 4)
    outputs = exact(layer, counts).double() * counts.step.double() * layer.scales.double()
    outputs += 0 if layer.bias is None else layer.bias.double()
    torch.testing.assert_close(layer.outputs(counts).double(), outputs, rtol=1e-5, atol=1e-5)
    step = static_step([outputs.float()], Encoding())
    theta = thresholds(layer.scales, counts.step, step)
    fired = fire(layer.potentials(counts), theta, offsets=layer.offsets(counts.step))
    error = (fired * step - outputs).abs()
    relative = 0.51 / theta.double()
    assert (error <= step * 0.5 + outputs.abs() * relative + step * relative).all()
    rounded = torch.round(outputs / step)
    assert (fired == rounded).double().mean() > 0.999


def test_fixed_point_rounds_half_away_from_zero():
    units = torch.tensor([2.5, -2.5, 0.4, -0.4, 0.5, -0.5, -3.0, 1.6, -1.6], dtype=torch.float64)
    assert fixed_point(units / (1 << FRACTION), "It").tolist() == [3, -3, 0, 0, 1, -1, -3, 2, -2]
    odd = 2**53 - 1  # whose sum with a half is no float64
    below = 0.49999999999999994  # the same
    units = torch.tensor([odd, -odd, below, -below], dtype=torch.float64)
    assert fixed_point(units / (1 << FRACTION), "It").tolist() == [odd, -odd, 0, 0]


def test_thresholds_hold_the_scales():
    scales, step = torch.tensor([0.5, 0.25]), torch.tensor([[2.0], [1 / 16]])
    assert thresholds(scales, step, 3.0).tolist() == [[3 << 16, 6 << 16], [96 << 16, 192 << 16]]
    each = thresholds(scales, step, torch.tensor([[3.0], [1 / 32]]))
    assert each.tolist() == [[3 << 16, 6 << 16], [1 << 16, 2 << 16]]
    assert thresholds(torch.tensor([1.0]), torch.tensor([[2.0**17]]), 1.0).tolist() == [[1]]  # 1/2 unit: away from zero
    assert thresholds(torch.tensor([1.0]), torch.tensor([[2.0**20]]), 1.0).tolist() == [[1]]  # at least one


@pytest.mark.parametrize(
    ("step", "next_step", "told"),
    [
        (torch.tensor([[1e-20]]), 1.0, "beyond the"),
        (torch.tensor([[1.0]]), 0.0, "A step of 0"),
        (torch.tensor([[1.0]]), float("nan"), "A step of nan"),
        (torch.tensor([[0.0]]), 1.0, "A step of 0"),
        (torch.tensor([1.0, 2.0]), 1.0, r"shape \(2,\)"),
        (torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 2.0]), r"shape \(2,\)"),
    ],
)
def test_unusable_steps_are_refused(step, next_step, told):
    with pytest.raises(SpikeError, match=told):
        thresholds(torch.tensor([1.0]), step, next_step)


def test_what_does_not_fit_into_fixed_point_is_refused():
    with pytest.raises(SpikeError, match="beyond fixed point"):
        fire(torch.tensor([[1 << 45]]), torch.tensor([[1]]))
    layer = SpikingLinear(torch.ones(1, 1, dtype=torch.int8), torch.full((1,), 1e-20), bias=torch.ones(1))
    with pytest.raises(SpikeError, match="The bias reaches"):
        layer.offsets(torch.ones(1, 1))
    with pytest.raises(SpikeError, match="still fire"):
        train = Windows().trains(from_integers(torch.tensor([[7]]), 1.0, Encoding()))
        fire_events(torch.tensor([[1]]), train, torch.tensor([[1]]))


@given(st.integers(1, 6), st.integers(1, 20), st.integers(1, 9), seeds, st.sampled_from([2, 4, 12]))
@settings(max_examples=100, deadline=None)
def test_power_of_two_groups_keep_the_threshold_form(out, width, group_size, seed, most_shift):
    generator = torch.Generator().manual_seed(seed)
    groups = -(-width // group_size)
    wanted = (
        torch.rand(out, groups, generator=generator) * 10 ** (3 * torch.rand(out, groups, generator=generator)) + 1e-3
    )
    rows, shifts = power_of_two_groups(wanted, most_shift)
    reached = rows[:, None].double() * 2.0 ** shifts.double()
    assert (reached >= wanted.double()).all()
    assert ((shifts == 0) | (reached < 2 * wanted.double())).all()
    assert (shifts <= most_shift).all()
    weights = torch.randint(-7, 8, (out, width), generator=generator, dtype=torch.int8)
    layer = SpikingLinear(weights, rows, shifts, group_size)
    assert layer.synapses.dtype == torch.int8 or most_shift > 4
    counts = random_counts(3, width, seed, Encoding(4, 6))
    potentials = layer.potentials(counts)
    assert torch.equal(potentials, exact(layer, counts))
    dense = weights.double() * reached.repeat_interleave(group_size, 1)[:, :width]
    expected = (counts.integers().double() * counts.step.double()) @ dense.T
    torch.testing.assert_close(layer.values(potentials, counts.step).double(), expected, rtol=1e-5, atol=1e-5)
    step = max(float(expected.abs().mean()), 1e-3)
    theta = thresholds(layer.scales, counts.step, step)
    events = fire_events(layer.synapses, Windows().trains(counts), theta, 127)
    assert torch.equal(events.counts, fire(potentials, theta, 127))


INT8, ONES = torch.ones(2, 6, dtype=torch.int8), torch.ones(2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((torch.ones(2, 6), ONES), "torch.float32"),
        ((torch.ones(6, dtype=torch.int8), ONES), "codes"),
        ((torch.ones(2, 0, dtype=torch.int8), ONES), "codes"),
        ((INT8, torch.ones(3)), "scales"),
        ((INT8, ONES.double()), "scales"),
        ((INT8, torch.tensor([1.0, 0.0])), "the least is 0"),
        ((INT8, torch.tensor([1.0, float("inf")])), "scales"),
        ((INT8, ONES, None, None, torch.tensor([1.0, float("nan")])), "bias"),
        ((INT8, ONES, None, None, torch.ones(6)), "bias"),
        ((INT8, ONES, torch.zeros(2, 3, dtype=torch.int8)), "come together"),
        ((INT8, ONES, None, 2), "come together"),
        ((INT8, ONES, torch.zeros(2, 3, dtype=torch.int8), 4), "groups of 4"),
        ((INT8, ONES, torch.zeros(2, 3), 2), "shifts"),
        ((INT8, ONES, torch.full((2, 3), -1, dtype=torch.int8), 2), "within 0 to 23"),
        ((INT8, ONES, torch.full((2, 3), 24, dtype=torch.int8), 2), "within 0 to 23"),
        ((127 * INT8.repeat(1, 100), ONES, torch.full((2, 100), 23, dtype=torch.int8), 6), "a row sums up to"),
    ],
)
def test_unusable_layers_are_refused_by_name(arguments, told):
    with pytest.raises(SpikeError, match=told):
        SpikingLinear(*arguments)


def test_unusable_groups_and_widths_are_refused():
    for scales, most in ((torch.zeros(2, 3), 4), (torch.ones(3), 4), (torch.full((1, 1), float("nan")), 4), (INT8, 24)):
        with pytest.raises(SpikeError, match="spiking layer"):
            power_of_two_groups(scales.float(), most)
    layer = SpikingLinear(INT8, ONES)
    for act in (layer.potentials, layer.outputs):
        with pytest.raises(SpikeError, match="width 5 came to a layer of width 6"):
            act(random_counts(2, 5, 0))


def test_no_tokens_are_no_failure():
    layer, counts = random_layer(3, 5, 0, bias=True), encode(torch.empty(0, 5), Encoding())
    theta = thresholds(layer.scales, counts.step, 1.0)
    offsets = layer.offsets(counts.step)
    assert fire(layer.potentials(counts), theta, 7, offsets).shape == layer.outputs(counts).shape == (0, 3)
    assert fire_events(layer.synapses, Windows().trains(counts), theta, 7, offsets).counts.shape == (0, 3)


def test_zero_and_constant_tokens_go_through():
    layer = random_layer(4, 3, 0)
    counts = encode(torch.tensor([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]]), Encoding())
    assert torch.equal(layer.potentials(counts)[0], torch.zeros(4, dtype=torch.int64))
    assert torch.equal(layer.potentials(counts)[1], 7 * layer.codes.long().sum(1))


def test_massive_values_of_many_columns_are_exact_over_chunks(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 64)
    layer, counts = random_layer(24, 48, 5), random_counts(31, 48, 6)
    assert counts.has_massive
    assert torch.equal(layer.potentials(counts), exact(layer, counts))
    assert torch.equal(layer.outputs(counts), layer.values(exact(layer, counts), counts.step))
    theta = thresholds(layer.scales, counts.step, 0.1)
    fired = fire(layer.potentials(counts), theta)
    monkeypatch.undo()
    assert torch.equal(fired, fire(layer.potentials(counts), theta))
