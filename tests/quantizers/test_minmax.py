import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm.errors import FormatError
from qslm.formats import INTEGER_BITS, Format
from qslm.formats.dtypes import code_dtype
from qslm.formats.quantized import spread
from qslm.quantizers import round_site

FORMATS = [
    Format.parse(f"int{bits}{symmetric}-{grain}{scale}")
    for bits in INTEGER_BITS
    for symmetric in ("", "-sym")
    for grain in ("tensor", "row", "g32", "g64", "g128")
    for scale in ("", "-s32", "-s8")
    if (grain, scale) != ("tensor", "-s8")
]
formats = st.sampled_from(FORMATS)
shapes = st.tuples(st.integers(1, 9), st.integers(1, 200))


def random_weight(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Rows of very different ranges and places: some without negative numbers, some zero."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    weight *= 10.0 ** torch.randint(-6, 4, (shape[0], 1), generator=generator)
    weight += weight.abs().amax(1, keepdim=True) * torch.randint(-2, 3, (shape[0], 1), generator=generator)
    return weight * torch.randint(0, 4, (shape[0], 1), generator=generator).clamp(max=1)


@given(formats, shapes, st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_every_number_is_at_most_half_a_step_off(format, shape, seed):
    weight = random_weight(shape, seed)
    rounded = round_site(weight, format)
    error = (rounded.dequantize() - weight).abs().double()
    step = spread(rounded.scales.double(), shape[1], format)
    beyond = weight > 0 if format.symmetric and format.bits == 1 else torch.zeros_like(weight, dtype=torch.bool)
    slack = 1 + 2.0 ** (format.bits - 22)  # float32 holds weight / scale with 24 bits
    assert bool((error <= step / 2 * slack)[~beyond].all())
    assert not bool(rounded.dequantize()[beyond].any())


@given(formats, shapes, st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_zero_stays_zero_and_signs_stay(format, shape, seed):
    weight = random_weight(shape, seed)
    weight[:, ::3] = 0
    numbers = round_site(weight, format).dequantize()
    assert not bool(numbers[:, ::3].any())
    assert bool((numbers * weight >= 0).all())


@given(formats, shapes, st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_rounding_what_is_rounded_with_its_own_grid_changes_nothing(format, shape, seed):
    rounded = round_site(random_weight(shape, seed), format)
    codes, zeros = rounded.codes, rounded.zeros
    assert format.lowest <= int(codes.min()) <= int(codes.max()) <= format.highest
    assert codes.dtype == code_dtype(format)
    assert (zeros is None) == format.symmetric
    if zeros is not None:
        assert int(zeros.min()) >= 0
        assert int(zeros.max()) <= format.highest
    again = torch.round(rounded.dequantize() / spread(rounded.scales.float(), shape[1], format))
    steps = codes.float() - (0 if zeros is None else spread(zeros.float(), shape[1], format))
    assert torch.equal(again, steps)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_symmetric_scale_uses_all_codes(bits):
    low = -(2 ** (bits - 1))
    weight = torch.tensor([[float(low), 0.0, 1.0]])
    rounded = round_site(weight, Format.parse(f"int{bits}-sym-row"))
    assert float(rounded.scales) == 1.0
    assert rounded.codes.tolist() == [[low, 0, 1]]


def test_one_bit():
    weight = torch.tensor([[-0.5, 0.25, -0.1]])
    symmetric = round_site(weight, Format.parse("int1-sym-row"))
    assert symmetric.dequantize().tolist() == [[-0.5, 0.0, 0.0]]
    affine = round_site(weight.abs(), Format.parse("int1-row"))
    assert affine.dequantize().tolist() == [[0.5, 0.0, 0.0]]


def test_worked_example():
    weight = torch.tensor([[-1.0, 2.0, 0.4]])  # s = 3 / 15, z = 5
    rounded = round_site(weight, Format.parse("int4-row-s32"))
    assert float(rounded.scales) == pytest.approx(0.2)
    assert rounded.zeros.tolist() == [[5]]
    assert rounded.codes.tolist() == [[0, 15, 7]]


@pytest.mark.parametrize("grain", ["tensor", "row", "g64", "row-s8", "g64-s8"])
def test_chunks_of_rows_change_nothing(grain, monkeypatch):
    weight = random_weight((37, 100), 5)
    format = Format.parse(f"int3-{grain}")
    whole = [round_site(weight, format, quantizer) for quantizer in ("minmax", "clip")]
    monkeypatch.setattr("qslm.formats.quantized.CHUNK", 1000)
    parts = [round_site(weight, format, quantizer) for quantizer in ("minmax", "clip")]
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one.codes, other.codes)
        assert torch.equal(one.dequantize(), other.dequantize())


def test_groups_are_rows_of_their_own():
    weight = random_weight((4, 96), 1)
    grouped = round_site(weight, Format.parse("int4-g32"))
    rows = round_site(weight.reshape(12, 32), Format.parse("int4-row"))
    assert torch.equal(grouped.dequantize(), rows.dequantize().reshape(4, 96))


@pytest.mark.parametrize("quantizer", ["minmax", "clip"])
def test_tiny_and_huge_weights(quantizer):
    tiny = torch.tensor([[1e-40, -3e-42, 1e-45]])
    assert torch.isfinite(round_site(tiny, Format.parse("int4-row"), quantizer).dequantize()).all()
    assert float(round_site(tiny, Format.parse("int4-row"), quantizer).scales) > 0
    huge = torch.tensor([[1e38, -1e38, 1e20]])
    numbers = round_site(huge, Format.parse("int8-row-s32"), quantizer, name="w").dequantize()
    assert torch.allclose(numbers, huge, atol=1e36)
    with pytest.raises(FormatError, match="w: a scale") as caught:
        round_site(huge, Format.parse("int8-g64"), quantizer, name="w")
    assert "int8-g64-s32" in caught.value.remedy
    with pytest.raises(FormatError, match="w: a scale reaches numbers beyond float32"):
        round_site(huge * 3, Format.parse("int8-row-s32"), quantizer, name="w")
