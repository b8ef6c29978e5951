import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm.errors import FormatError
from qslm.formats import Format
from qslm.formats.dtypes import scale_dtype
from qslm.formats.scales import powers_of_two, scale_problem, stored_scales

HALF, SINGLE = Format.parse("int8-row"), Format.parse("int8-row-s32")


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
