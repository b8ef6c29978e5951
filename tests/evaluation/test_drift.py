import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks.encoder import SpikingEncoder
from networks.spikegpt import random_ids, random_spikegpt
from torch import nn

from qslm.evaluation.drift import Watch, divergence
from qslm.models.neurons import IF, SpikeTrace


def by_hand(p, q):
    """KL of logits with NumPy in extended precision."""

    def logs(z):
        z = z.numpy().astype(np.longdouble)
        z = z - z.max(-1, keepdims=True)
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    a, b = logs(p), logs(q)
    return (np.exp(a) * (a - b)).sum(-1).astype(np.float64)


@given(st.integers(0, 10_000), st.sampled_from([1e-3, 0.1, 1.0, 10.0, 300.0]))
def test_the_divergence_is_that_of_the_definition(seed, size):
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(3, 5, 17, generator=generator) * 4
    q = p + size * torch.randn(p.shape, generator=generator)
    found = divergence(p, q)
    assert found.shape == (3, 5) and found.dtype == torch.float64
    assert np.allclose(found.numpy(), by_hand(p, q), rtol=2e-3, atol=1e-12)


def test_a_tiny_divergence_is_exact_and_none_is_zero():
    p = torch.randn(700, 4000, generator=torch.Generator().manual_seed(0)) * 3
    assert (divergence(p, p) == 0).all()
    assert (divergence(p, p + 5.0) < 1e-10).all()  # a constant is no difference
    q = p + 1e-4 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    found = divergence(p, q)
    assert np.allclose(found.numpy(), by_hand(p, q), rtol=5e-3)
    assert 1e-10 < found.mean() < 1e-7


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_are_infinitely_far(bad):
    p, q = torch.zeros(2, 4), torch.zeros(2, 4)
    q[1, 2] = bad
    assert divergence(p, q).tolist() == [0.0, math.inf]


def blurred(model, amount=0.15):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and name != "emb.weight":
                parameter += amount * parameter.std() * torch.randn(parameter.shape, generator=generator)


def test_spikes_and_potentials_are_those_of_a_trace_by_hand():
    model = random_spikegpt(layers=2)
    first, second = random_ids(model, 3, 20), random_ids(model, 2, 20, seed=2)
    before, after = SpikeTrace(), SpikeTrace()
    logits = [model(ids, trace=before if ids is first else None) for ids in (first, second)]
    with torch.no_grad(), Watch(model) as watch:
        watch.remember()
        model(first), model(second)
        blurred(model)
        watch.compare()
        rounded = [model(ids) for ids in (second, first)][::-1]  # in another order, as a stopped evaluation has it
        found = watch.result()
    model(first, trace=after)
    nats = torch.cat([divergence(*pair).flatten() for pair in zip(logits, rounded, strict=True)])
    assert found.rows == 100 and found.divergence == pytest.approx(float(nats.mean()), rel=1e-12)
    names = [f"blocks.{i}.{name}" for i in range(2) for name in ("att_lif", "ffn_lif")]
    assert [neuron.name for neuron in found.neurons] == names
    for place, neuron in enumerate(found.neurons):
        h, hq = before.potentials[place].double(), after.potentials[place].double()
        s, sq = before.spikes[place].double(), after.spikes[place].double()
        assert neuron.rate == pytest.approx(float(sq.mean()))
        assert neuron.rate_change == pytest.approx(float(sq.mean() - s.mean()))
        assert neuron.flipped == pytest.approx(float((s != sq).double().mean()))
        assert neuron.drift == pytest.approx(float((hq - h).abs().mean() / h.std(correction=0)), rel=1e-5)
        assert watch.neurons[neuron.name] == pytest.approx(float(s.mean()))
    assert found.flipped == pytest.approx(sum(n.flipped for n in found.neurons) / 4) and found.flipped > 0
    assert found.drift == pytest.approx(sum(n.drift for n in found.neurons) / 4) and found.drift > 0
    assert found.rate_change == pytest.approx(sum(n.rate_change for n in found.neurons) / 4)


def test_the_float_network_does_not_drift_and_the_hooks_go():
    model = random_spikegpt()
    ids = random_ids(model, 2, 12)
    with torch.no_grad(), Watch(model) as watch:
        watch.remember()
        model(ids)
        watch.compare()
        model(ids), model(ids)  # the same batch twice counts once
        found = watch.result()
    assert (found.divergence, found.rows) == (0.0, 24)
    assert (found.flipped, found.drift, found.rate_change) == (0.0, 0.0, 0.0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Repeated(nn.Module):
    """A network whose one neuron runs several times a pass, given its membrane by name."""

    def __init__(self):
        super().__init__()
        self.linear, self.neuron = nn.Linear(4, 4), IF()

    def forward(self, x, trace=None):
        v = None
        for _ in range(3):
            x, v = self.neuron(self.linear(x), v=v, trace=trace)
        return {"logits": (x,)}


def test_a_neuron_that_runs_several_times_is_one_layer():
    model = Repeated()
    with torch.no_grad():
        model.linear.weight.copy_(torch.randn(4, 4, generator=torch.Generator().manual_seed(5)))
        model.linear.bias.fill_(0.4)
        x = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(6))
        before, after = SpikeTrace(), SpikeTrace()
        model(x, trace=before)
        with Watch(model) as watch:
            watch.remember()
            model(x)
            model.linear.weight.mul_(1.3)
            watch.compare()
            assert watch.unseen == {"neuron"}
            (missed,) = watch.result().neurons
            assert (missed.rate, missed.flipped, missed.drift) == (watch.neurons["neuron"], 0.0, 0.0)
            model(x)
            assert watch.unseen == set()
            (neuron,) = watch.result().neurons
        model(x, trace=after)
    h, hq = torch.stack(before.potentials).double(), torch.stack(after.potentials).double()
    assert len(before.potentials) == 3
    assert neuron.drift == pytest.approx(float((hq - h).abs().mean() / h.std(correction=0)), rel=1e-5)
    assert neuron.flipped == pytest.approx(
        float((torch.stack(before.spikes) != torch.stack(after.spikes)).float().mean())
    )


def test_float_logits_are_kept_up_to_the_bound():
    model = SpikingEncoder()
    batches = [torch.randint(40, (5, 6), generator=torch.Generator().manual_seed(i)) for i in range(4)]
    size = 5 * 8 * 4
    for bound, rows in ((0, 5), (2 * size, 10), (10 * size, 20)):
        with torch.no_grad(), Watch(model, bound) as watch:
            watch.remember()
            for batch in batches:
                model(batch)
            watch.compare()
            for batch in batches:
                model(batch)
            found = watch.result()
        assert (found.rows, found.divergence) == (rows, 0.0)
        assert found.neurons == () and found.flipped is None and found.drift is None and found.rate_change is None
