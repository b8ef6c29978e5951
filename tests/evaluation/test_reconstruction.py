"""Reconstruction of one allocation: it comes closer to the float network, which is left as it was."""

from dataclasses import replace

import pytest
import torch
from networks.spikegpt import random_spikegpt
from networks.tasks import NextToken
from torch import nn

from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.calibration.blocks import Block
from qslm.calibration.calls import Call
from qslm.errors import StudyError, TaskError
from qslm.evaluation import Evaluator
from qslm.evaluation.reconstruction import FACTORS, SpikingBlock, _BlockLearner, _spiking, reconstruct
from qslm.formats import Format
from qslm.models.neurons import LIF
from qslm.quantizers import round_site


class Calibrated(NextToken):
    """With a split of its own to calibrate on, of sequences that no other split has."""

    def __init__(self, model):
        super().__init__(model, windows=400, tokens=24, batch=40)
        self.splits["calibrate"] = self.splits["report"][:-2]
        self.splits["report"] = self.splits["report"][-2:]


@pytest.fixture(scope="module")
def network():
    return random_spikegpt(vocabulary=32, width=32, layers=2)


@pytest.fixture(scope="module")
def task(network):
    return Calibrated(network)


def uniform(network, text="int2-g32", quantizer="clip"):
    return Allocation.uniform(find_anatomy(network), Format.parse(text), quantizer=quantizer)


@pytest.fixture(scope="module")
def reconstruction(network, task):
    return reconstruct(network, find_anatomy(network), task, uniform(network))


def test_the_spikes_and_the_predictions_come_closer_to_the_float_networks(network, task, reconstruction):
    before = sum(flips.before for flips in reconstruction.flips)
    assert sum(flips.after for flips in reconstruction.flips) < 0.95 * before
    anatomy, allocation = find_anatomy(network), uniform(network)
    learned = allocation.reconstructed()
    with Evaluator(network, anatomy, task) as evaluator:
        evaluator.learned[learned.quantizer] = reconstruction.sites
        float32, plain, ours = (
            evaluator.measure(one, "report").value for one in (Allocation.float32(anatomy), allocation, learned)
        )
    assert float32 < ours < plain


def test_every_integer_site_is_there_in_its_format_and_the_network_is_given_back(network, task, reconstruction):
    allocation = uniform(network)
    expected = {site.name: (fmt, site.shape) for site, fmt in allocation.items() if fmt.is_integer}
    assert {name: (site.format, site.shape) for name, site in reconstruction.sites.items()} == expected
    assert reconstruction.tokens == sum(batch[:, :-1].numel() for batch in task.batches("calibrate"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    again = reconstruct(network, find_anatomy(network), task, allocation)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert modes == [module.training for module in network.modules()]
    assert all(torch.equal(again.sites[name].codes, site.codes) for name, site in reconstruction.sites.items())
    assert not any(vars(block).get("forward") for block in network.blocks)


def test_what_was_interrupted_leaves_the_network_as_it_was(network, task, monkeypatch):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    monkeypatch.setattr("qslm.evaluation.reconstruction._descend", lambda *_: (_ for _ in ()).throw(KeyError))
    with pytest.raises(KeyError):
        reconstruct(network, find_anatomy(network), task, uniform(network))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_the_matrices_whose_rows_drive_a_neuron_are_found(network, task):
    anatomy = find_anatomy(network)
    block = _spiking(network, anatomy, Call((task.batches("search")[0][:4, :-1],), {}))[1]
    sites = {site.name: site.name.removeprefix("blocks.1.") for site in anatomy.sites if "blocks.1." in site.name}
    matrices = {name: local for name, local in sites.items() if not anatomy[name].is_vector}

    stream = torch.rand(4, 24, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        drivers = list(_BlockLearner(block, [Call((stream, None, None), {})], matrices).drivers())
    assert drivers == [(0, "blocks.1.att.output.weight"), (1, "blocks.1.ffn.value.weight")]


class OneNeuron(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix, self.lif = nn.Linear(8, 6, bias=False), LIF()

    def forward(self, x):
        return self.lif(self.matrix(x))[0]


def test_a_threshold_is_the_inverse_factor_of_a_row():
    """Rows that are too small by a factor of FACTORS are found, and their spikes are the float ones again."""
    generator = torch.Generator().manual_seed(0)
    module = OneNeuron().requires_grad_(False)
    module.matrix.weight.copy_(torch.randn(6, 8, generator=generator))
    start = round_site(module.matrix.weight, Format.parse("int8-row-s32"), "minmax")
    module.matrix.weight.copy_(start.dequantize())
    wrong = torch.tensor([FACTORS[place] for place in (0, 1, 2, 3, 4, 5)])

    streams = [Call((3 * torch.randn(4, 50, 8, generator=generator),), {}) for _ in range(4)]
    off = replace(start, scales=start.scales / wrong[:, None])
    block = SpikingBlock(Block("attention 0", "block", module), (module.lif,))
    learner = _BlockLearner(block, streams, {"block.matrix.weight": "matrix.weight"})
    rounded = {"block.matrix.weight": off}
    before = learner.flips(rounded)
    rounded["block.matrix.weight"] = learner.corrected(rounded, 0, "block.matrix.weight")
    torch.testing.assert_close(rounded["block.matrix.weight"].scales, start.scales, rtol=1e-6, atol=0)
    assert before > 0.005 and learner.flips(rounded) < 0.1 * before


def test_a_network_that_is_no_chain_is_refused(network, task):
    model = random_spikegpt(vocabulary=32, width=32, layers=2)
    first = model.blocks[0]
    original = first.forward
    first.forward = lambda x, state, trace: tuple(
        2 * part if i == 0 else part for i, part in enumerate(original(x, state, trace))
    )
    with torch.no_grad():
        reconstruct(model, find_anatomy(model), task, uniform(model))  # still a chain: the block itself is another
    model.blocks[1].register_forward_pre_hook(lambda _, args: (args[0] + 1, *args[1:]))
    with pytest.raises(StudyError, match="something else than the block before it gives"):
        reconstruct(model, find_anatomy(model), task, uniform(model))


@pytest.mark.parametrize("batches", [0, 1])
def test_too_little_text_is_refused_by_name(network, batches):
    task = Calibrated(network)
    task.splits["calibrate"] = [batch[:4] for batch in task.splits["calibrate"][:batches]]
    with pytest.raises(TaskError, match=r"has (0|96) tokens, reconstruction needs 256 or more"):
        reconstruct(network, find_anatomy(network), task, uniform(network))
