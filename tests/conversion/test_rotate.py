"""Rotations that are folded offline change no logit, and spread what a channel alone carried."""

import pytest
import torch
from networks.llama import TYPES, tiny

from qslm.conversion.rotate import rotate
from qslm.errors import CheckpointError

pytest.importorskip("transformers", reason="needs pip install 'qslm[llama]'")


def logits(network, ids):
    with torch.inference_mode():
        return network(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("tied", "online"), [(True, False), (False, True)])
def test_the_logits_stay(kind, tied, online):
    network, ids = tiny(kind, tied=tied), torch.arange(40).reshape(2, 20)
    before, size = logits(network, ids), network.lm_head.weight.nbytes
    found = rotate(network, online=online)
    torch.testing.assert_close(logits(network, ids), before, atol=1e-5, rtol=0)
    assert str(found.inner) == ("hadamard 40" if online else "None")
    assert found.untied_bytes == (size if tied else 0)
    assert network.lm_head.weight is not network.model.embed_tokens.weight
    assert (str(found.stream), str(found.heads)) == ("hadamard 24", "hadamard 4")


def test_an_outlying_channel_is_spread():
    network, ids = tiny("llama"), torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        network.model.embed_tokens.weight[:, 3] += 50
    seen = []
    network.model.layers[1].input_layernorm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    before = logits(network, ids)
    rotate(network)
    torch.testing.assert_close(logits(network, ids), before, atol=1e-4, rtol=0)
    first, second = (one.abs().amax(-1) / one.square().mean(-1).sqrt() for one in seen)
    assert first.min() > 4 and second.max() < 2


def test_a_network_that_is_not_built_so_is_refused():
    with pytest.raises(CheckpointError, match="Linear is not known to be built as Llama is"):
        rotate(torch.nn.Linear(4, 4))
