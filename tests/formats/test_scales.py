import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm.errors import FormatError
from qslm.formats import Format
from qslm.formats.dtypes import scale_dtype
from qslm.formats.scales import (
    HIGHEST,
    multiples,
    powers_of_two,
    scale_codes,
    scale_problem,
    scale_step,
    stored_scales,
)

HALF, SINGLE, EIGHT = (Format.parse(f"int8-row{ending}") for ending in ("", "-s32", "-s8"))
LARGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.finfo(np.float32).smallest_subnormal)


def stored(value: float, format: Format) -> torch.Tensor:
    return stored_scales(torch.tensor([[value]], dtype=torch.float64), format, "w")


@given(st.floats(1e-300, 65504), st.sampled_from([HALF, SINGLE]))
@settings(max_examples=150, deadline=None)
def test_a_scale_is_the_smallest_stored_number_not_below(exact, format):
    scale = stored(exact, format)
    assert scale.dtype == scale_dtype(format)
    below = np.nextafter(scale.numpy(), np.zeros_like(scale.numpy()))
    assert 0 < exact <= float(scale)
    assert float(below.item()) < exact


@given(st.floats(SMALLEST, LARGEST / 256, width=32))
@settings(max_examples=300, deadline=None)
def test_codes_of_8_bits_follow_again_from_their_products(step):
    codes, one = torch.arange(1, HIGHEST + 1), torch.tensor([step])
    assert torch.equal(scale_codes(multiples(codes, one, EIGHT), one, EIGHT), codes.to(torch.uint8))


@given(st.lists(st.just(0.0) | st.floats(1e-300, 1e36), min_size=1, max_size=20).filter(any))
@settings(max_examples=300, deadline=None)
def test_scales_of_8_bits_are_the_next_multiples_of_a_step_that_reaches_them_all(values):
    exact = torch.tensor([values], dtype=torch.float64)
    step = scale_step(exact, EIGHT)
    scales = stored_scales(exact, EIGHT, "w", step)
    codes = scale_codes(scales, step, EIGHT)
    assert step.dtype == scales.dtype == torch.float32 and step.shape == (1,)
    assert torch.equal(multiples(codes, step, EIGHT), scales) and int(codes.min()) >= 1
    assert bool((scales.double() >= exact).all())
    above = stored_scales(exact, SINGLE, "w").double()  # the next float32 numbers
    assert bool(((codes.double() - 1) * step.double() < above).all())
    below = np.nextafter(step.numpy(), np.float32(0))
    assert HIGHEST * float(below[0]) < float(above[exact > 0].max())


def test_scales_of_8_bits_end_at_the_highest_code():
    step = scale_step(torch.tensor([[2.0]]).double(), EIGHT)
    scales = stored_scales(torch.tensor([[5.0, 1e30, 1.0, 0.0]]).double(), EIGHT, "w", step)
    assert scale_codes(scales, step, EIGHT).tolist() == [[255, 255, 128, 1]]


def test_other_scales_have_no_step_and_zeros_one_of_1():
    assert scale_step(torch.ones(1, 1).double(), HALF) is scale_step(torch.ones(1, 1).double(), SINGLE) is None
    step = scale_step(torch.zeros(2, 3).double(), EIGHT)
    assert step.tolist() == [1.0]
    assert stored_scales(torch.zeros(2, 3).double(), EIGHT, "w", step).unique().tolist() == [1.0]


@pytest.mark.parametrize("value", [3.4e38, 1e39])
def test_too_large_scales_of_8_bits_are_refused_by_name(value):
    exact = torch.tensor([[value, 1.0]], dtype=torch.float64)
    with pytest.raises(FormatError, match="w: a scale") as caught:
        stored_scales(exact, EIGHT, "w", scale_step(exact, EIGHT))
    assert "Keep this site" in caught.value.remedy


def test_no_range_is_a_scale_of_one():
    assert float(stored(0.0, HALF)) == float(stored(-0.0, SINGLE)) == 1.0


@pytest.mark.parametrize(
    ("value", "format", "remedy"),
    [(65505.0, HALF, "int8-row-s32"), (1e39, SINGLE, "Keep this site"), (3.4e38, SINGLE, "Keep this site")],
)
def test_too_large_a_scale_is_refused_by_name(value, format, remedy):
    with pytest.raises(FormatError, match="w: ") as caught:
        stored(value, format)
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), -0.0])
def test_other_scales_have_a_problem(value):
    assert scale_problem(torch.tensor([[1.0, value]]), SINGLE)
    assert not scale_problem(torch.tensor([[1.0, 2.0]]), SINGLE)


def test_powers_of_two_are_exact():
    exponents = torch.arange(-126, 128)
    assert powers_of_two(exponents).tolist() == [2.0**k for k in range(-126, 128)]
    assert powers_of_two(torch.tensor([[-8, 0]], dtype=torch.int8)).tolist() == [[2.0**-8, 1.0]]
