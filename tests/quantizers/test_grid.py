"""Scales of 8 bits: multiples of one step, and weights rounded to what these stand for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizers.test_gptq import drawn
from quantizers.test_minmax import random_weight

from qslm.errors import FormatError
from qslm.formats import INTEGER_BITS, Format
from qslm.formats.scales import multiples, scale_codes
from qslm.quantizers import QUANTIZERS, round_site

FORMATS = [
    Format.parse(f"int{bits}{symmetric}-{grain}-s8")
    for bits in INTEGER_BITS
    for symmetric in ("", "-sym")
    for grain in ("row", "g32", "g64", "g128")
]


def squared(weight: torch.Tensor, format: str, quantizer: str = "minmax") -> float:
    """The squared error of a whole weight."""
    return float(((round_site(weight, Format.parse(format), quantizer).dequantize() - weight).double() ** 2).sum())


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@given(st.sampled_from(FORMATS), st.integers(1, 9), st.integers(1, 150), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_every_scale_is_a_multiple_of_the_step(quantizer, format, rows, columns, seed):
    weight = random_weight((rows, columns), seed)
    inputs = {"weight": drawn(rows, columns, seed)[1]}
    rounded = round_site(weight, format, quantizer, inputs=inputs)
    codes = scale_codes(rounded.scales, rounded.step, format)
    assert torch.equal(multiples(codes, rounded.step, format), rounded.scales) and int(codes.min()) >= 1
    assert torch.equal(rounded.step, round_site(weight, format).step)
    assert bool(torch.isfinite(rounded.dequantize()).all())


@pytest.mark.parametrize(("quantizer", "most"), [("minmax", 1.03), ("clip", 1.02), ("hqq", 1.05)])
@pytest.mark.parametrize("format", ["int8-g32", "int4-g64", "int4-sym-g32", "int3-row"])
def test_it_is_off_by_little_more_than_with_scales_of_16_bits(format, quantizer, most):
    weight = torch.randn(64, 768, generator=torch.Generator().manual_seed(0))
    assert squared(weight, f"{format}-s8", quantizer) < most * squared(weight, format, quantizer)


@pytest.mark.parametrize("quantizer", ["minmax", "clip", "hqq"])
@pytest.mark.parametrize("symmetric", ["", "-sym"])
def test_nothing_but_zeros_stays_zero(symmetric, quantizer):
    rounded = round_site(torch.zeros(3, 40), Format.parse(f"int3{symmetric}-g32-s8"), quantizer)
    assert rounded.step.tolist() == [1.0] and rounded.scales.unique().tolist() == [1.0]
    assert not rounded.dequantize().any()


@pytest.mark.parametrize("quantizer", ["minmax", "clip", "hqq"])
def test_beside_a_huge_group_a_tiny_one_takes_the_smallest_scale(quantizer):
    weight = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    weight[0, :32] *= 1e6
    weight[1, 32:] = 0
    rounded = round_site(weight, Format.parse("int8-g32-s8"), quantizer)
    codes = scale_codes(rounded.scales, rounded.step, rounded.format)
    assert int(codes[0, 0]) > 200 and codes[0, 1] == codes[1, 0] == codes[1, 1] == 1
    error = (rounded.dequantize() - weight).abs()
    assert bool((error[:, 32:] <= rounded.step / 2).all()) and bool((error[1] <= rounded.step / 2).all())
    assert not rounded.dequantize()[1, 32:].any()


@pytest.mark.parametrize(("shape", "groups"), [((3, 20), (3, 1)), ((3, 33), (3, 2)), ((1, 1), (1, 1)), ((7,), (1, 1))])
def test_a_ragged_group_and_a_weight_narrower_than_its_group(shape, groups):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rounded = round_site(weight, Format.parse("int8-g32-s8"))
    assert rounded.scales.shape == groups and rounded.shape == shape
    assert float((rounded.dequantize() - weight).abs().max()) <= float(rounded.scales.max()) / 2 * (1 + 1e-4)


@pytest.mark.parametrize("quantizer", ["minmax", "clip", "hqq"])
def test_tiny_and_huge_weights(quantizer):
    tiny = torch.tensor([[1e-40, -3e-42, 1e-45], [1e-45, 0.0, 0.0]])
    rounded = round_site(tiny, Format.parse("int4-row-s8"), quantizer)
    assert float(rounded.step) > 0 and bool(torch.isfinite(rounded.dequantize()).all())
    huge = torch.tensor([[1e38, -1e38, 1e20]])
    numbers = round_site(huge, Format.parse("int8-row-s8"), quantizer).dequantize()
    assert torch.allclose(numbers, huge, atol=1e36)
    with pytest.raises(FormatError, match="w: a scale reaches numbers beyond float32"):
        round_site(huge * 3, Format.parse("int8-row-s8"), quantizer, name="w")
