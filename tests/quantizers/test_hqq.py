"""Half-quadratic rounding by the power of the errors that it is for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizers.test_clip import FORMATS

from qslm.formats import Format
from qslm.quantizers import round_site
from qslm.quantizers.hqq import POWER


def power(weight: torch.Tensor, format: Format, quantizer: str) -> torch.Tensor:
    """The sum of |error|^p of every scale, float64."""
    errors = (round_site(weight, format, quantizer).dequantize().double() - weight.double()).abs() ** POWER
    if format.granularity == "tensor":
        return errors.sum()
    size = format.group_size or weight.shape[1]
    padded = torch.nn.functional.pad(errors, (0, -weight.shape[1] % size))
    return padded.reshape(weight.shape[0], -1, size).sum(-1)


@given(st.sampled_from(FORMATS), st.integers(1, 6), st.integers(1, 150), st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_no_scale_does_worse_than_with_min_max(format, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) ** 3 * 1e-3
    ours, plain = power(weight, format, "hqq"), power(weight, format, "minmax")
    assert bool((ours <= plain * (1 + 1e-3) + 1e-9).all())


@pytest.mark.parametrize(("bits", "most"), [(2, 0.9), (3, 0.92), (4, 0.98)])
def test_it_wins_where_tails_are_heavy(bits, most):
    weight = torch.randn(64, 768, generator=torch.Generator().manual_seed(0)) ** 3
    format = Format.parse(f"int{bits}-row")
    assert power(weight, format, "hqq").sum() < most * power(weight, format, "minmax").sum()
    assert bits == 4 or power(weight, format, "hqq").sum() < power(weight, format, "clip").sum()


def test_weights_of_any_size_are_rounded_alike():
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) ** 3
    format = Format.parse("int3-row-s32")
    codes = [round_site(weight * 2.0**k, format, "hqq").codes for k in (-20, 0, 20)]
    assert torch.equal(codes[0], codes[1]) and torch.equal(codes[1], codes[2])


def test_nothing_but_zeros_stays_zero():
    assert not round_site(torch.zeros(3, 40), Format.parse("int3-g32"), "hqq").dequantize().any()
