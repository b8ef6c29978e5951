"""Which matrices are stored by columns: by the measured share of inputs that are not zero."""

import pytest
import torch
from networks.spikegpt import random_spikegpt
from networks.tasks import NextToken

from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.evaluation.density import MOST_DENSITY, Density, layouts_by_density
from qslm.formats import Format
from qslm.runtime.matrix import round_tokens

VALUE = "blocks.{}.ffn.value.weight"


def quiet(model, layer):
    """Rows of ffn.key against a bias that all inputs have, so that few of its outputs are positive."""
    with torch.no_grad():
        model.blocks[layer].ln2.bias += 1
        model.blocks[layer].ffn.key.weight -= 0.15
    return model


def test_the_share_is_of_the_inputs_as_the_engine_rounds_them():
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).relu().square()
    density = Density()
    density.add(x)
    assert density.firing == (round_tokens(x.numpy())[0] != 0).sum()
    assert 0.2 < density.share < 0.5


def test_what_fires_seldom_is_stored_by_columns_and_nothing_else():
    model = quiet(random_spikegpt(vocabulary=32), 1).train()
    anatomy, messages = find_anatomy(model), []
    progress = type("Told", (), {"message": lambda _, text: messages.append(text)})()
    found = layouts_by_density(model, anatomy, NextToken(model.eval()), progress)
    assert [site.name for site in anatomy.sites if site.sparse] == [VALUE.format(0), VALUE.format(1)]
    assert [site.name for site in found.sites if site.sparse] == [VALUE.format(1)]
    assert "1 of 2" in messages[0] and f"{MOST_DENSITY:.0%}" in messages[0]
    manifest = Allocation.uniform(found, Format.parse("int4-row")).manifest()
    assert manifest.by_columns == (VALUE.format(1),)


@pytest.mark.parametrize("training", [False, True])
def test_the_network_is_left_as_it_was(training):
    model = random_spikegpt(vocabulary=32)
    task = NextToken(model)
    model.train(training)
    layouts_by_density(model, find_anatomy(model), task)
    assert model.training is training
    assert not any(module._forward_pre_hooks for module in model.modules())
