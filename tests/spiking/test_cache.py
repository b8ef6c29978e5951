"""The form of a KV cache of integers, as config.json has it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks.spikegpt import random_spikegpt

from qslm.errors import CheckpointError, SpikeError
from qslm.spiking.cache import CacheForm, hold

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None)
@given(bits=st.integers(2, 8), steps=st.none() | st.dictionaries(st.text(), st.lists(NUMBERS).map(tuple)))
def test_a_form_comes_back_from_json(bits, steps):
    form = CacheForm(bits, steps)
    assert CacheForm.from_dict(json.loads(json.dumps(form.to_dict()))) == form


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(("bits", "steps", "v_proj")), inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(JSON)
def test_whatever_json_says_is_a_form_or_refused(values):
    try:
        form = CacheForm.from_dict(values)
    except (SpikeError, ValueError, OverflowError):
        return
    assert form.to_dict() == values


@pytest.mark.parametrize("bits", [0, 1, 9, True, 4.0])
def test_other_bits_are_refused(bits):
    with pytest.raises(SpikeError, match="KV cache of"):
        CacheForm(bits)


def test_a_spikegpt_has_no_cache():
    with pytest.raises(CheckpointError, match="A SpikeGPT has no KV cache"):
        hold(random_spikegpt(vocabulary=40, width=32, layers=2), CacheForm(4))
