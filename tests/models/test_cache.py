"""Keys of a KV cache as integers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers", reason="needs pip install 'qslm[llama]'")

from transformers import LlamaConfig

from qslm.models.cache import IntegerCache, round_keys
from qslm.models.hadamard import Rotation


@settings(deadline=None)
@given(
    bits=st.integers(2, 8), width=st.integers(1, 9), seed=st.integers(0, 1000), scale=st.sampled_from((1e-6, 1, 1e6))
)
def test_keys_have_as_many_levels_as_their_bits_and_none_is_a_step_off(bits, width, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    keys = scale * (torch.randn(2, 3, 5, width, generator=generator) + torch.randn((), generator=generator))
    rounded = round_keys(keys, bits)
    span = keys.amax(-1, keepdim=True).clamp(min=0) - keys.amin(-1, keepdim=True).clamp(max=0)
    steps = span / (2**bits - 1)
    assert bool(((rounded - keys).abs() <= 1.001 * steps).all())
    levels = rounded / steps
    torch.testing.assert_close(levels, levels.round(), atol=1e-2, rtol=0)
    assert int((levels.round().amax(-1) - levels.round().amin(-1)).max()) <= 2**bits - 1


def test_a_zero_stays_and_so_do_keys_that_are_all_zeros():
    keys = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 7.3], [-2.0, 0.0, -0.1]])
    rounded = round_keys(keys, 4)
    assert torch.equal(rounded[0], keys[0]) and rounded[1, 0] == rounded[2, 1] == 0


def test_ends_are_kept_where_all_keys_have_one_sign():
    keys = torch.tensor([0.5, 1.0, 15.0])
    assert torch.equal(round_keys(keys, 4), torch.tensor([0.0, 1.0, 15.0]))
    assert torch.equal(round_keys(-keys, 4), -torch.tensor([0.0, 1.0, 15.0]))


def test_a_channel_that_stands_out_costs_less_than_its_share():
    """A turned head spreads it, so the others keep their bits."""
    keys = torch.randn(1, 2, 9, 16, generator=torch.Generator().manual_seed(0))
    keys[..., 3] += 40
    cache = IntegerCache(LlamaConfig(num_hidden_layers=1), 4)
    found, values = cache.update(keys, keys, 0)
    assert torch.equal(values, keys)
    turn = Rotation.of(16)
    torch.testing.assert_close(turn.apply(found), round_keys(turn.apply(keys), 4), atol=1e-4, rtol=0)
    others = [channel for channel in range(16) if channel != 3]
    queries = torch.randn(1, 2, 5, 16, generator=torch.Generator().manual_seed(1))
    queries[..., 3] = 0

    def error(some):
        return float(((some - keys)[..., others] @ queries[..., others].mT).square().mean())

    assert error(found) < 0.8 * error(round_keys(keys, 4))
