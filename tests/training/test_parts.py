"""The parts of training: loss, dropout, initialization, learning rate."""

import pytest
import torch
from torch.nn import functional as F

from qslm.errors import TrainingError
from qslm.models.config import SpikeGPTConfig
from qslm.models.spikegpt import ResidualDropout
from qslm.training.card import firing_rates
from qslm.training.initialize import initialize, new_spikegpt
from qslm.training.loop import OptimizerSettings, make_optimizer, resume, save
from qslm.training.loss import next_token_loss


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("tokens", [1, 511, 512, 700, 1024])
def test_next_token_loss_is_cross_entropy(tokens):
    # Values that bfloat16 holds exactly, so that only the products' rounding remains.
    x = torch.randn(tokens, 24, generator=generator()).bfloat16().float().requires_grad_()
    weight = (0.5 * torch.randn(37, 24, generator=generator(1))).bfloat16().float().requires_grad_()
    targets = torch.randint(37, (tokens,), generator=generator(2))
    loss = next_token_loss(x, weight, targets)
    expected = F.cross_entropy(x @ weight.T, targets)
    torch.testing.assert_close(loss, expected, rtol=5e-3, atol=5e-3)
    found, wanted = (torch.autograd.grad(3 * value, (x, weight)) for value in (loss, expected))
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.02 * other.norm()


def test_dropout_has_its_rate_and_keeps_the_mean():
    dropout = ResidualDropout().train()
    dropout.rate, dropout.generator = 0.1, generator()
    x = torch.ones(50, 40, 101)
    out = dropout(x)
    assert float((out == 0).float().mean()) == pytest.approx(26 / 256, abs=0.003)
    assert float(out.mean()) == pytest.approx(1, abs=0.005)
    assert out.max() == pytest.approx(256 / 230)


@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (8,)], ids=str)
def test_dropout_is_drawn_from_its_generator_alone(shape):
    dropout = ResidualDropout().train()
    dropout.rate = 0.5
    before = torch.random.get_rng_state()
    results = []
    for seed in (4, 4):
        dropout.generator = generator(seed)
        results.append([dropout(torch.ones(shape)) for _ in range(8)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert len({str(out.tolist()) for out in results[0]}) > 1
    assert torch.equal(torch.random.get_rng_state(), before)


def test_dropout_is_off_in_evaluation_and_at_rate_zero():
    x = torch.ones(3, 4)
    dropout = ResidualDropout()
    dropout.rate = 0.5
    assert dropout.eval()(x) is x
    dropout.rate = 0.0
    assert dropout.train()(x) is x


@pytest.mark.parametrize("config", [(300, 16, 2, 24), (5, 1, 1, 1), (5, 3, 3, 7, 9, 2)], ids=str)
def test_initialization_is_complete_and_comes_from_the_seed_alone(config):
    config = SpikeGPTConfig(*config)
    before = torch.random.get_rng_state()
    one, other = new_spikegpt(config, 3), new_spikegpt(config, 3)
    for parameter in other.parameters():
        parameter.data.fill_(float("nan"))
    initialize(other, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, tensor in one.state_dict().items():
        assert torch.isfinite(tensor).all(), name
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert not torch.equal(one.emb.weight, new_spikegpt(config, 4).emb.weight)
    assert all(p.requires_grad for p in one.parameters())


def test_rate_warms_up_and_decays_to_its_floor():
    settings = OptimizerSettings(steps=1000, peak_rate=1e-3, warmup_steps=100, weight_decay=0.1)
    rates = [settings.rate(step) for step in range(1000)]
    assert rates[0] == pytest.approx(1e-5) and rates[99] == rates[100] == pytest.approx(1e-3)
    assert rates[:100] == sorted(rates[:100]) and rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[550] == pytest.approx(0.51e-3) and rates[-1] == pytest.approx(2e-5, rel=0.01)
    assert OptimizerSettings(1, 1e-3, 0, 0.1).rate(0) == pytest.approx(1e-3)


def test_only_matrices_decay():
    model = new_spikegpt(SpikeGPTConfig(300, 16, 2, 24), 0)
    matrices, vectors = make_optimizer(model, OptimizerSettings(1, 1e-3, 0, 0.1)).param_groups
    assert matrices["weight_decay"] == 0.1 and vectors["weight_decay"] == 0
    assert {tuple(p.squeeze().shape) for p in vectors["params"]} == {(16,)}
    assert len(matrices["params"]) == 2 + 2 * 7 and all(p.ndim == 2 for p in matrices["params"])


def test_firing_rates_leave_out_padding():
    model = new_spikegpt(SpikeGPTConfig(300, 16, 2, 24), 0)
    ids = torch.randint(300, (4, 10), generator=generator())
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 6:] = False
    rates = firing_rates(model, ids, mask)
    assert rates == firing_rates(model, ids[:, :6]) and len(rates) == 2


def test_state_of_another_network_is_an_error(tmp_path):
    settings = OptimizerSettings(1, 1e-3, 0, 0.1)
    for width, layers, path in ((8, 1, tmp_path / "a.pt"), (16, 2, tmp_path / "b.pt")):
        model = new_spikegpt(SpikeGPTConfig(300, width, layers, 24), 0)
        save(path, {}, 1, model, make_optimizer(model, settings), history_of(1))
        other = new_spikegpt(SpikeGPTConfig(300, 16, 1, 24), 0)
        with pytest.raises(TrainingError, match="another network"):
            resume(path, {}, other, make_optimizer(other, settings))


def history_of(step):
    from qslm.training.loop import History

    return History([(step, 2.0)], [(step, 3.0)])
