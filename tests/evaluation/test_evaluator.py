import numpy as np
import pytest
import torch
from networks.encoder import SpikingEncoder
from networks.tasks import Agreement, NextToken
from networks.tied import TiedNetwork
from torch import nn

from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.errors import FormatError, StudyError
from qslm.evaluation import Evaluator, evaluate
from qslm.evaluation import evaluator as evaluator_module
from qslm.formats import FLOAT16, Format
from qslm.quantizers import round_site

INT4 = Format.parse("int4")


@pytest.fixture
def model():
    return SpikingEncoder()


@pytest.fixture
def task(model):
    return Agreement(model)


def test_measures_what_a_rounded_copy_measures(model, task):
    anatomy = find_anatomy(model)
    allocation = Allocation.uniform(anatomy, INT4, vectors=FLOAT16)
    with Evaluator(model, anatomy, task) as evaluator:
        measured = evaluator.measure(allocation, "search")
    copy = SpikingEncoder()
    state = {site.name: round_site(model.state_dict()[site.name], fmt).dequantize() for site, fmt in allocation.items()}
    copy.load_state_dict(state)
    expected = evaluate(copy, task, "search")
    assert np.array_equal(measured.losses.values, expected.losses.values)
    assert measured.footprint_file == allocation.footprint().file
    assert (measured.metric, measured.tokens) == ("accuracy", 720) and measured.seconds > 0
    assert measured.low < measured.value < measured.high < 0.95


def test_gives_weights_and_modes_back_bit_for_bit(model, task):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    anatomy = find_anatomy(model)
    model.train()
    model.last_ln.eval()
    with pytest.raises(KeyError), Evaluator(model, anatomy, task) as evaluator:
        assert not any(module.training for module in model.modules())
        evaluator.measure(Allocation.uniform(anatomy, INT4), "search")
        evaluator.measure(Allocation.uniform(anatomy, INT4), "no such split")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and model.dropout.training and not model.last_ln.training


def test_rounds_only_what_changed(model, task, monkeypatch):
    rounded = []

    def spy(weight, fmt, quantizer, *, name, inputs, learned):
        rounded.append(name)
        return round_site(weight, fmt, quantizer, name=name, inputs=inputs, learned=learned)

    monkeypatch.setattr(evaluator_module, "round_site", spy)
    anatomy = find_anatomy(model)
    first = Allocation.uniform(anatomy, INT4)
    with Evaluator(model, anatomy, task) as evaluator:
        evaluator.measure(first, "search")
        assert len(rounded) == len(anatomy.sites)
        rounded.clear()
        evaluator.measure(first.replace(["emb.weight"], Format.parse("int2")), "search")
        assert rounded == ["emb.weight"]
        rounded.clear()
        evaluator.measure(Allocation(anatomy, first.formats, "clip"), "search")
        assert set(rounded) == {site.name for site in anatomy.sites if not site.is_vector}


def test_the_order_of_allocations_does_not_matter(model, task):
    anatomy = find_anatomy(model)
    allocations = [Allocation.uniform(anatomy, Format.parse(text)) for text in ("int2", "int8", "int3", "int2")]
    with Evaluator(model, anatomy, task) as evaluator:
        runs = [evaluator.measure(allocation, "search").losses.values for allocation in allocations]
        again = evaluator.measure(Allocation.float32(anatomy), "search").losses.values
    assert np.array_equal(runs[0], runs[3]) and not np.array_equal(runs[0], runs[1])
    assert np.array_equal(again, evaluate(model, task, "search").losses.values)


def test_a_tied_tensor_is_rounded_in_both_places():
    model = TiedNetwork()
    anatomy = find_anatomy(model)
    with Evaluator(model, anatomy, NextToken(model)) as evaluator:
        evaluator.apply(Allocation.float32(anatomy).replace(["head.weight"], INT4))
        assert torch.equal(model.head.weight, model.emb.weight)
        assert len(model.emb.weight[0].unique()) <= 16


def test_no_global_random_generator_is_touched(model, task):
    state = torch.get_rng_state()
    model.train()
    first, second = evaluate(model, task), evaluate(model, task)
    assert torch.equal(state, torch.get_rng_state()) and model.training
    assert np.array_equal(first.losses.values, second.losses.values)


class Drifting(nn.Module):
    """Keeps a membrane potential from one call to the next, until it is reset."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.membrane = inner, 0.0

    def reset(self):
        self.membrane = 0.0

    def forward(self, ids):
        self.membrane += 1.0
        return self.inner(ids) * (1.5 - self.membrane)


def test_spiking_state_is_reset_before_every_batch(model, task):
    plain, drifting = evaluate(model, task), evaluate(Drifting(model), task)
    assert np.array_equal(plain.losses.values, drifting.losses.values)


def test_bad_weights_and_changed_networks_are_named(model, task):
    anatomy = find_anatomy(model)
    with torch.no_grad():
        model.classifier.weight[0, 0] = float("nan")
    with pytest.raises(FormatError, match=r"classifier\.weight"), Evaluator(model, anatomy, task) as evaluator:
        evaluator.measure(Allocation.uniform(anatomy, INT4), "search")
    model.classifier = nn.Linear(3, 3)
    with pytest.raises(StudyError, match=r"classifier\.weight"):
        Evaluator(model, anatomy, task)
