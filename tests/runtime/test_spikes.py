"""The engine's spike counts against those of `qslm.spiking`, to the bit."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm import _native
from qslm.spiking import Encoding, StaticSaliency
from qslm.spiking.encoding import encode
from qslm.spiking.saliency import salient

numbers = st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5])
tokens = st.lists(numbers, min_size=1, max_size=80)


@given(
    tokens | st.integers(0, 10**6), st.integers(2, 8), st.integers(2, 8), st.sampled_from([1.0, 0.9, 0.5]),
    st.sampled_from([3.5, 1.0, 20.0]), st.booleans(),
)  # fmt: skip
@settings(max_examples=400, deadline=None)
def test_counts_are_those_of_the_encoding(drawn, bits, more, clip, threshold, static):
    if isinstance(drawn, int):  # heavy tails, and zeros as behind a relu
        generator = np.random.default_rng(drawn)
        drawn = generator.standard_t(1.2, size=300) * (generator.random(300) < 0.7)
    x = np.array(drawn, np.float32)
    encoding, saliency = Encoding(bits, max(bits, more), clip), StaticSaliency(0.25, 2.0)
    rows = torch.from_numpy(x)[None]
    wanted = encode(rows, encoding, saliency.mask(rows) if static else salient(rows, threshold))
    codes, massive = np.full(320, 3, np.int8), np.full(320, 3, np.int8)
    given_static = (saliency.center, saliency.reach) if static else None
    step, exponent = _native.encode_spikes(
        x, bits, encoding.salient_bits, clip, threshold, given_static, codes, massive
    )
    assert step == float(wanted.step) and exponent == int(wanted.exponents)
    counts, apart = wanted.counts[0].numpy(), wanted.massive[0].numpy()
    assert np.array_equal(codes[: len(x)], counts * ~apart) and np.array_equal(massive[: len(x)], counts * apart)
    assert not codes[len(x) :].any() and not massive[len(x) :].any()


def test_numbers_that_are_not_finite_do_no_harm():
    for bad in (np.nan, np.inf, -np.inf):
        x, codes, massive = np.array([1, bad, -2, 0.5] * 20, np.float32), np.empty(128, np.int8), np.empty(128, np.int8)
        _native.encode_spikes(x, 4, 8, 1.0, 3.5, None, codes, massive)
        assert np.abs(codes.astype(int)).max() <= 127
