"""The engine's own power, cosine and sine against those of the C library and of PyTorch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm import _native


@given(st.floats(0, 2**24, width=32) | st.integers(0, 2**24).map(float) | st.floats(0, 8, width=32))
@settings(max_examples=2000, deadline=None)
def test_cosine_and_sine_are_right_to_the_51st_bit(x):
    cosine, sine = _native.turn(x)
    assert abs(cosine - math.cos(x)) < 2**-51 and abs(sine - math.sin(x)) < 2**-51


def test_cosine_and_sine_where_quarters_of_a_turn_end():
    """The floats nearest to multiples of pi / 2 leave the least after the reduction."""
    for quarters in [*range(2000), *range(2**23, 10_680_000, 997)]:
        x = float(np.float32(quarters * math.pi / 2))
        for near in (x, float(np.nextafter(np.float32(x), np.float32(0)))):
            cosine, sine = _native.turn(near)
            assert abs(cosine - math.cos(near)) < 2**-51 and abs(sine - math.sin(near)) < 2**-51
    assert _native.turn(0.0) == (1.0, 0.0)


@given(st.floats(1, 1e12), st.floats(0, 1, width=32))
@settings(max_examples=2000, deadline=None)
def test_the_power_is_right_to_the_46th_bit(base, exponent):
    assert _native.power(base, exponent) == pytest.approx(math.pow(base, exponent), rel=2**-46, abs=0)


@pytest.mark.parametrize("theta", [10_000.0, 100_000.0, 500_000.0, 1_000_000.0])
@pytest.mark.parametrize("width", [4, 64, 80, 128])
def test_angles_are_those_of_pytorch_in_float32(theta, width):
    context = 3000
    cosines, sines = np.empty((context, width // 2), np.float32), np.empty((context, width // 2), np.float32)
    _native.fill_angles(theta, cosines, sines)
    inverse = 1.0 / (theta ** (torch.arange(0, width, 2).float() / width))
    angles = torch.arange(context).float()[:, None] * inverse
    # A power of PyTorch is off by a bit at times, which counts as often as there are turns.
    bound = 2**-23 * np.maximum(angles.numpy(), 1)
    assert (np.abs(cosines - angles.cos().numpy()) <= bound).all()
    assert (np.abs(sines - angles.sin().numpy()) <= bound).all()
    own = np.float32(1) / np.array(
        [theta ** float(np.float32(2 * i) / np.float32(width)) for i in range(width // 2)], "f"
    )
    exact = (np.arange(context, dtype=np.float32)[:, None] * own).astype(float)
    assert np.array_equal(cosines, np.cos(exact).astype(np.float32))
    assert np.array_equal(sines, np.sin(exact).astype(np.float32))
