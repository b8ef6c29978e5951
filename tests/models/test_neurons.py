"""LIF and IF: the fused kernels against the plain recurrence, and the equations themselves."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qslm import _native
from qslm.models.neurons import IF, LIF, Neuron, SpikeTrace, fused_lif, heaviside

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 70))  # (batch, tokens, channels)
THRESHOLD_CASES = [2.0, np.nextafter(np.float32(2), np.float32(0)).item(), 1.0, 0.0, -0.0, 3.5, -5.0, 1e30]
EXTREMES = [math.inf, -math.inf, math.nan]


@st.composite
def currents(draw, dtype):
    """Currents of which some hit the threshold exactly."""
    shape = draw(SHAPES)
    width = 32 if dtype is np.float32 else 64
    elements = st.floats(-4, 8, width=width) | st.sampled_from([*THRESHOLD_CASES, *EXTREMES])
    return torch.from_numpy(draw(arrays(dtype, shape, elements=elements, fill=st.sampled_from([2.0, 1.5, -1.0]))))


def plain(x, v=None, trace=None):
    return Neuron.forward(LIF(), x, v, trace)


def same(one, other):
    """Whether two tensors are equal, NaN where the other has NaN."""
    return torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(0.5), other.nan_to_num(0.5))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kernel_gives_the_bits_of_the_plain_recurrence(dtype):
    @settings(max_examples=60, deadline=None)
    @given(currents(dtype))
    def check(x):
        fused_trace, plain_trace = SpikeTrace(), SpikeTrace()
        spikes, membrane = fused_lif(x, None, fused_trace)
        expected, expected_membrane = plain(x, None, plain_trace)
        assert torch.equal(spikes, expected) and same(membrane, expected_membrane)
        assert same(fused_trace.potentials[0], plain_trace.potentials[0])
        cut = x.shape[1] // 2
        if cut:
            first, v = fused_lif(x[:, :cut])
            second, v = fused_lif(x[:, cut:], v)
            assert torch.equal(torch.cat((first, second), 1), spikes) and same(v, membrane)

    check()


def test_lif_follows_its_equation():
    x = torch.tensor([3.0, 0.0, 2.0, 0.5, 0.5, 9.0]).view(1, -1, 1)
    trace = SpikeTrace()
    spikes, v = LIF()(x, None, trace)
    assert trace.potentials[0].flatten().tolist() == [1.5, 0.0, 1.0, 0.25, 0.375, 4.6875]
    assert spikes.flatten().tolist() == [1, 0, 1, 0, 0, 1]
    assert v.tolist() == [[0.0]]


def test_an_infinite_current_fires_and_is_forgotten():
    x = torch.tensor([math.inf, 3.0, 1.0]).view(1, -1, 1)
    for run in (fused_lif, plain):
        spikes, v = run(x)
        assert spikes.flatten().tolist() == [1, 1, 0] and v.tolist() == [[0.5]]


@pytest.mark.parametrize("forward", [LIF.forward, Neuron.forward], ids=["fused", "plain"])
def test_the_gradient_at_an_infinite_potential_is_its_limit(forward):
    gradients = []
    for current in (math.inf, 1e30):
        x = torch.tensor([1.5, current, 1.0, 1.5]).double().view(1, -1, 1).requires_grad_()
        spikes, _ = forward(LIF(), x)
        gradients.append(torch.autograd.grad(spikes.sum(), x)[0].flatten())
    assert gradients[0][1] == 0
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-25)


def test_the_hard_reset_has_the_gradient_of_its_product():
    generator = torch.Generator().manual_seed(8)
    h = (2 * torch.randn(5, 9, generator=generator)).requires_grad_()
    spike = (h.detach() >= 1).float().requires_grad_()
    upstream = torch.randn(5, 9, generator=generator)
    results = []
    for v in (LIF().reset(h, spike), h * (1 - spike)):
        results.append((v, *torch.autograd.grad(v, (h, spike), upstream)))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_neuron_says_how_it_charges_and_resets():
    with pytest.raises(TypeError, match="abstract"):
        Neuron()


def test_if_follows_its_equation():
    x = torch.tensor([0.6, 0.6, 2.5, -1.0, 0.3]).view(1, -1, 1).double()
    trace = SpikeTrace()
    spikes, v = IF()(x, torch.tensor([[0.1]], dtype=torch.float64), trace)
    h = torch.tensor([0.7, 1.3, 2.8, 0.8, 1.1], dtype=torch.float64)
    torch.testing.assert_close(trace.potentials[0].flatten(), h)
    assert spikes.flatten().tolist() == [0, 1, 1, 0, 1]
    torch.testing.assert_close(v, torch.tensor([[0.1]], dtype=torch.float64))


def test_forced_spikes_are_emitted_and_reset():
    generator = torch.Generator().manual_seed(3)
    x = 3 * torch.randn(2, 9, 67, generator=generator)
    forced = torch.randint(2, x.shape, generator=generator).float()
    results = []
    for run in (fused_lif, plain):
        trace = SpikeTrace(forced=[forced])
        spikes, v = run(x, None, trace)
        results.append((spikes, v, trace.potentials[0]))
    assert torch.equal(results[0][0], forced)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("alpha", [2.0, 0.7])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 13, 65), (3, 7, 64)], ids=str)
def test_gradient_equals_autograd_of_the_surrogate(shape, alpha):
    generator = torch.Generator().manual_seed(sum(shape))
    currents = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    upstream = torch.randn(shape, generator=generator, dtype=torch.float64)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        gradients = []
        for forward in (LIF.forward, Neuron.forward):
            x = currents.to(dtype).requires_grad_()
            spikes, _ = forward(LIF(alpha), x)
            gradients.append(torch.autograd.grad(spikes, x, upstream.to(dtype))[0])
        torch.testing.assert_close(gradients[0], gradients[1], rtol=tolerance, atol=tolerance)


def test_gradient_from_a_carried_membrane_falls_back_to_autograd():
    x = torch.tensor([[[1.9]]], dtype=torch.float64, requires_grad=True)
    v = torch.tensor([[0.2]], dtype=torch.float64, requires_grad=True)
    spikes, _ = LIF()(x, v)
    gx, gv = torch.autograd.grad(spikes, (x, v))
    surrogate = 1 / (1 + (math.pi * (1.05 - 1)) ** 2)
    assert gx.item() == pytest.approx(0.5 * surrogate) and gv.item() == pytest.approx(0.5 * surrogate)


def test_heaviside_fires_at_zero_of_either_sign():
    x = torch.tensor([-0.0, 0.0, -1e-45, 1e-45, -3.0], requires_grad=True)
    spikes = heaviside(x)
    assert spikes.tolist() == [1, 1, 0, 1, 0]
    (gradient,) = torch.autograd.grad(spikes.sum(), x)
    expected = [1 / (1 + (math.pi * value) ** 2) for value in x.tolist()]
    assert gradient.tolist() == pytest.approx(expected)


def test_result_does_not_depend_on_threads():
    x = 3 * torch.randn(3, 9, 150, generator=torch.Generator().manual_seed(0))
    results = []
    for threads in (1, 2):
        v, spikes, gradient = x.new_zeros(3, 150), torch.empty_like(x), torch.empty_like(x)
        _native.lif_forward(x, None, v, spikes, None, threads)
        _native.lif_backward(x, spikes, 2.0, gradient, threads)
        results.append((v, spikes, gradient))
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_wrong_shapes_are_refused():
    x = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match="channels"):
        _native.lif_forward(x, None, torch.zeros(1, 2), torch.empty_like(x), None, 1)
    with pytest.raises(ValueError, match="forced"):
        _native.lif_forward(x, torch.zeros(1, 1, 3), torch.zeros(1, 3), torch.empty_like(x), None, 1)


@pytest.mark.parametrize("neuron", [LIF(), IF()])
def test_potentials_under_given_spikes_are_those_of_the_plain_recurrence_with_their_gradient(neuron):
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(2, 9, 5, generator=generator, dtype=torch.float64)).requires_grad_(True)
    spikes = (torch.rand(2, 9, 5, generator=generator) < 0.3).double()
    trace = SpikeTrace(forced=[spikes])
    Neuron.forward(neuron, x, None, trace)
    expected, found = trace.potentials[0], neuron.potentials(x, spikes)
    assert torch.equal(found, expected)
    pull = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad((one * pull).sum(), x)[0] for one in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda current: neuron.potentials(current, spikes), x)
