"""Outputs that leave a layer as spike counts, on a next step for each head."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm.errors import SpikeError
from qslm.spiking import Encoding, SpikingLinear, Windows, encode, fire_events, thresholds
from qslm.spiking.firing import SHARES, Firing, calibrated_steps


def layer_of(heads, width, seed, *, bias=False):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-7, 8, (heads * width, 12), generator=generator, dtype=torch.int8)
    scales = 0.05 + torch.rand(heads * width, generator=generator)
    charge = torch.randn(heads * width, generator=generator) if bias else None
    counts = encode(torch.randn(5, 12, generator=generator).exp(), Encoding(clip=0.9))
    return SpikingLinear(codes, scales, bias=charge), counts


@settings(deadline=None)
@given(
    heads=st.integers(1, 4), width=st.integers(1, 5), bits=st.integers(2, 8), seed=st.integers(0, 999),
    static=st.booleans(), bias=st.booleans(),
)  # fmt: skip
def test_counts_are_the_outputs_in_steps_rounded_and_clipped(heads, width, bits, seed, static, bias):
    neurons, counts = layer_of(heads, width, seed, bias=bias)
    steps = 0.1 + torch.rand(heads, generator=torch.Generator().manual_seed(seed)) if static else None
    firing = Firing(bits, heads, steps)
    fired, found = firing.fired(neurons, counts)
    assert found.shape == (5, heads) and (steps is None or torch.equal(found, steps.expand(5, heads)))
    exact = neurons.values(neurons.potentials(counts), counts.step).double()
    wide = found.double().repeat_interleave(width, 1)
    off = (exact / wide).clamp(-firing.most, firing.most) - fired
    assert float(off.abs().max()) <= 0.5 + 1e-3
    values = firing.values(fired, found)
    assert torch.equal(values, fired.float() * found.repeat_interleave(width, 1))
    if steps is None:
        largest = fired.reshape(5, heads, width).abs().amax(2)
        silent = exact.reshape(5, heads, width).abs().amax(2) == 0
        assert bool(((largest == firing.most) | silent).all())


@pytest.mark.parametrize("bias", [False, True])
def test_events_fire_the_same_counts(bias):
    neurons, counts = layer_of(3, 4, 5, bias=bias)
    steps = torch.tensor([0.5, 1.0, 2.0])
    fired, _ = Firing(4, 3, steps).fired(neurons, counts)
    theta = torch.cat([thresholds(neurons.scales[4 * i : 4 * i + 4], counts.step, steps[i]) for i in range(3)], 1)
    events = fire_events(neurons.codes, Windows().trains(counts), theta, 7, neurons.offsets(counts.step))
    assert torch.equal(events.counts, fired) and int(fired.abs().max()) == 7


def test_no_step_that_reaches_another_share_has_a_smaller_error():
    outputs = torch.distributions.StudentT(3.0).sample((400, 6)) * torch.tensor([1.0, 1, 1, 9, 9, 9])
    steps = calibrated_steps(outputs, 4, 2)

    def errors(some):
        wide = some.repeat_interleave(3)
        return ((outputs / wide).round().clamp(-7, 7) * wide - outputs).square().reshape(-1, 2, 3).sum((0, 2))

    reach = outputs.abs().reshape(-1, 2, 3).amax((0, 2)) / 7
    for share in SHARES:
        assert bool((errors(steps) <= errors(share * reach) * 1.0001).all())
    assert bool((errors(steps) < errors(reach)).all())  # heavy tails are clipped


def test_heads_of_zeros_have_a_step():
    outputs = torch.zeros(4, 4)
    outputs[:, 2:] = 3.5
    assert calibrated_steps(outputs, 4, 2).tolist() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((1, 2), "counts of 1 bits"),
        ((9, 2), "counts of 9 bits"),
        ((4, 2, torch.ones(3)), r"\[3\]"),
        ((4, 2, torch.tensor([1.0, 0.0])), "not above 0"),
        ((4, 2, torch.tensor([1.0, float("inf")])), "not above 0"),
        ((4, 2, torch.ones(2, dtype=torch.float64)), "float64"),
    ],
)
def test_what_is_no_firing_is_refused(given, told):
    with pytest.raises(SpikeError, match=told):
        Firing(*given)


def test_no_outputs_calibrate_nothing():
    with pytest.raises(SpikeError, match="without outputs"):
        calibrated_steps(torch.empty(0, 4), 4, 2)
