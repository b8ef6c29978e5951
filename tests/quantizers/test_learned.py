"""Learned rounding: where it starts, where it ends, and what it may not change."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm.errors import FormatError
from qslm.formats import Format
from qslm.quantizers import InputStatistics, round_site
from qslm.quantizers.learned import TOWARDS, LearnedRounding, with_factors

FORMATS = ["int2-row", "int3-g32", "int4-sym-row", "int1-row", "int3-tensor", "int2-g32-s8", "int3-sym-g64-s32"]


def drawn(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 5), st.integers(1, 70), st.sampled_from(FORMATS), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_it_starts_between_the_weight_and_the_rounded_one_and_ends_on_the_grid(rows, columns, text, seed):
    weight, format = drawn(rows, columns, seed), Format.parse(text)
    start = round_site(weight, format, "minmax")
    learned = LearnedRounding(weight, start)
    with torch.no_grad():
        step = start.scales.float().max()
        grid = [replace(start, codes=torch.full_like(start.codes, end)) for end in (format.lowest, format.highest)]
        low, high = (one.dequantize() for one in grid)
        for one in (start, *grid):
            between = torch.lerp(weight, one.dequantize(), TOWARDS).maximum(low).minimum(high)
            assert (LearnedRounding(weight, one)(1.0) - between).abs().max() <= 0.021 * step
        rounded = learned.rounded("w")
    assert (rounded.format, rounded.shape) == (format, (rows, columns))
    assert torch.equal(rounded.scales, start.scales) and (rounded.zeros is None) == (start.zeros is None)
    assert rounded.codes.min() >= format.lowest and rounded.codes.max() <= format.highest
    torch.testing.assert_close(learned(1e-7), rounded.dequantize(), rtol=1e-6, atol=1e-6)


def test_what_is_learned_moves_codes_to_a_neighbour_and_scales_by_their_factor():
    weight, format = drawn(4, 64), Format.parse("int3-g32")
    start = round_site(weight, format, "minmax")
    learned = LearnedRounding(weight, start)
    with torch.no_grad():
        learned.logits.neg_()
        learned.logarithms.fill_(0.1)
    rounded = learned.rounded("w")
    moved = (rounded.codes.int() - start.codes.int()).abs()
    assert moved.max() == 1
    torch.testing.assert_close(rounded.scales.float(), start.scales.float() * 1.10517, rtol=1e-3, atol=0)


def test_gradients_reach_the_logits_and_the_scales_but_not_those_of_8_bits():
    weight = drawn(4, 64)
    for text, learns in (("int2-g32", True), ("int2-g32-s8", False)):
        learned = LearnedRounding(weight, round_site(weight, Format.parse(text), "clip"))
        learned(0.5).square().sum().backward()
        assert learned.logits.grad.abs().max() > 0
        assert (learned.logarithms.grad is not None) == learns


def test_columns_that_were_scaled_stay_scaled():
    weight, exponents = drawn(8, 32), torch.tensor([0, -1, -2, -4] * 8, dtype=torch.int8)
    moment = torch.eye(32)
    inputs = {"weight": InputStatistics(moment, 100, exponents)}
    start = round_site(weight, Format.parse("int4-row"), "awq", inputs=inputs)
    learned = LearnedRounding(weight, start)
    rounded = learned.rounded("w")
    assert torch.equal(rounded.exponents, exponents)
    torch.testing.assert_close(learned(1e-7), rounded.dequantize(), rtol=1e-6, atol=1e-6)
    assert (rounded.dequantize() - weight).abs().mean() < 0.2


def test_factors_of_rows_become_factors_of_their_scales():
    weight = drawn(3, 64)
    start = round_site(weight, Format.parse("int4-g32"), "clip")
    factors = torch.tensor([[1.0], [0.5], [2.0]])
    found = with_factors(start, factors, "w")
    assert torch.equal(found.dequantize(), start.dequantize() * factors)  # powers of two are exact
    eight = round_site(weight, Format.parse("int4-g32-s8"), "clip")
    assert with_factors(eight, factors, "w") is eight
    with pytest.raises(FormatError, match="w: a scale is not a number that float16 can hold"):
        with_factors(start, torch.full((3, 1), 1e9), "w")


def test_a_format_without_codes_to_learn_is_refused():
    for text in ("sign", "float16"):
        with pytest.raises(FormatError, match=f"{text} has no codes to learn"):
            LearnedRounding(drawn(4, 64), round_site(drawn(4, 64), Format.parse(text), "minmax"))
