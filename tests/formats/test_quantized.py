import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm.errors import ArtifactError
from qslm.formats import BFLOAT16, FLOAT16, FLOAT32, SIGN, Format, data_bytes, matrix_shape
from qslm.formats import stored_tensors as promised_tensors
from qslm.formats.container import _describe
from qslm.formats.dtypes import code_dtype, scale_dtype, value_dtype
from qslm.formats.quantized import QuantizedTensor
from qslm.formats.scales import multiples

INTEGERS = [
    Format.parse(f"int{bits}{symmetric}-{grain}{scale}")
    for bits in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
    for symmetric in ("", "-sym")
    for grain in ("tensor", "row", "g32", "g128")
    for scale in ("", "-s32", "-s8")
    if (grain, scale) != ("tensor", "-s8")
]
SHIFTED = [Format.parse(f"int{bits}-sym-{grain}-p2") for bits in range(2, 8) for grain in ("g32", "g128")]
formats = st.sampled_from([*INTEGERS, *SHIFTED, FLOAT32, FLOAT16, BFLOAT16, SIGN])
shapes = st.lists(st.integers(1, 70), min_size=2, max_size=2).map(tuple) | st.just((3, 5, 7))


def random_tensor(format: Format, shape: tuple[int, ...], seed: int) -> QuantizedTensor:
    """A tensor whose codes, zero points and scales take any valid value."""
    generator = torch.Generator().manual_seed(seed)
    if format.kind == "float":
        values = torch.randn(shape, generator=generator).to(value_dtype(format))
        return QuantizedTensor(format, shape, values=values)
    rows, columns = matrix_shape(shape)

    def draw(low: int, high: int, size: tuple[int, int]) -> torch.Tensor:
        return torch.randint(low, high + 1, size, generator=generator).to(code_dtype(format))

    if format.kind == "sign":
        return QuantizedTensor(format, shape, codes=draw(0, 1, (rows, columns)))
    grid = format.scale_shape(rows, columns)
    scales, step = (torch.rand(grid, generator=generator) + 0.01).to(scale_dtype(format)), None
    if format.has_step:
        step = torch.exp2(torch.randint(-149, 90, format.step_shape(rows), generator=generator).float())
        step *= 1 + torch.rand(1, generator=generator)
        low, high = (0, format.most_shift) if format.scale_type == "power" else (1, 255)
        scales = multiples(torch.randint(low, high + 1, grid, generator=generator), step, format)
    zeros = draw(0, format.highest, grid) if format.has_zeros else None
    codes = draw(format.lowest, format.highest, (rows, columns))
    return QuantizedTensor(format, shape, codes, scales, zeros, step=step)


def by_definition(tensor: QuantizedTensor) -> torch.Tensor:
    """(code - zero) * scale, one number at a time."""
    rows, columns = tensor.codes.shape
    size = tensor.format.group_size or columns
    numbers = torch.empty(rows, columns)
    for row in range(rows):
        for column in range(columns):
            at = (0, 0) if tensor.format.granularity == "tensor" else (row, column // size)
            zero = 0 if tensor.zeros is None else int(tensor.zeros[at])
            step = torch.tensor(float(int(tensor.codes[row, column]) - zero))
            numbers[row, column] = step * tensor.scales[at].float()
    return numbers.reshape(tensor.shape)


@given(formats, shapes, st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_what_is_stored_is_what_was_promised_and_reads_back(format, shape, seed):
    tensor = random_tensor(format, shape, seed)
    stored = tensor.stored("site")
    promised = promised_tensors(format, shape, "site")
    assert [_describe(name, value) for name, value in stored.items()] == list(promised)
    assert sum(map(data_bytes, promised)) == sum(value.nbytes for value in stored.values())

    again = QuantizedTensor.from_stored(format, shape, "site", stored)
    for field in ("codes", "scales", "zeros", "values", "step"):
        ours, theirs = getattr(tensor, field), getattr(again, field)
        assert (ours is None and theirs is None) or (torch.equal(ours, theirs) and ours.dtype == theirs.dtype)
    assert torch.equal(again.dequantize(), tensor.dequantize())
    assert again.dequantize().shape == shape


@given(st.sampled_from(INTEGERS), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_dequantize_follows_its_definition(format, seed):
    tensor = random_tensor(format, (3, 37), seed)
    assert torch.equal(tensor.dequantize(), by_definition(tensor))


def test_signs_are_plus_and_minus_one():
    tensor = QuantizedTensor(SIGN, (1, 3), codes=torch.tensor([[0, 1, 1]], dtype=torch.uint8))
    assert tensor.dequantize().tolist() == [[-1.0, 1.0, 1.0]]


def test_dequantized_floats_are_a_copy():
    values = torch.zeros(3)
    QuantizedTensor(FLOAT32, (3,), values=values).dequantize().fill_(1)
    assert values.tolist() == [0, 0, 0]


INT5 = Format.parse("int5-g32")


def _nan(stored):
    stored["w.scales"][0] = float("nan")


def _negative(stored):
    stored["w.scales"][1] = -1


def _unused(stored):
    stored["w.codes"][-1] |= 0x80


def _unused_zero(stored):
    stored["w.zeros"][-1] |= 0x80


def _missing(stored):
    del stored["w.zeros"]


def _type(stored):
    stored["w.scales"] = stored["w.scales"].float()


def _shape(stored):
    stored["w.codes"] = stored["w.codes"][:-1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_nan, "float16"), (_negative, "not positive"), (_unused, "w.codes.*unused bits"), (_shape, "U8"),
        (_unused_zero, "w.zeros.*unused bits"), (_missing, "w.zeros.*missing"), (_type, "w.scales.*F32"),
    ],
)  # fmt: skip
def test_damaged_tensors_are_refused_by_name(damage, message):
    stored = random_tensor(INT5, (5, 33), 0).stored("w")
    damage(stored)
    with pytest.raises(ArtifactError, match=message) as caught:
        QuantizedTensor.from_stored(INT5, (5, 33), "w", stored)
    assert caught.value.remedy


INT3 = Format.parse("int3-g32-s8")


def _set(part, value):
    def damage(stored):
        stored[part].view(-1)[0] = value

    return damage


def _beyond(stored):
    stored["w.scales"][:] = 255
    stored["w.step"][0] = 1e36


def _float_codes(stored):
    stored["w.scales"] = stored["w.scales"].half()


def _double_step(stored):
    stored["w.step"] = stored["w.step"].double()


def _two_steps(stored):
    stored["w.step"] = stored["w.step"].repeat(2)


def _no_step(stored):
    del stored["w.step"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_set("w.scales", 0), "w.scales': a scale is not positive"), (_set("w.step", 0.0), "w.step': a step of 0.0"),
        (_set("w.step", -1.0), "w.step': a step of -1.0"), (_set("w.step", float("nan")), "w.step': a step of nan"),
        (_set("w.step", float("inf")), "w.step': a step of inf"), (_set("w.step", 3e38), "w.scales': .* float32"),
        (_beyond, "w.scales': a scale reaches numbers beyond float32"), (_float_codes, "w.scales': it is F16"),
        (_double_step, "w.step': it is F64"), (_two_steps, r"w.step': it is F32 \[2\]"),
        (_no_step, "w.step' is missing"),
    ],
)  # fmt: skip
def test_damaged_scales_of_8_bits_are_refused_by_name(damage, message):
    stored = random_tensor(INT3, (5, 33), 0).stored("w")
    damage(stored)
    with pytest.raises(ArtifactError, match=message) as caught:
        QuantizedTensor.from_stored(INT3, (5, 33), "w", stored)
    assert caught.value.remedy


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ArtifactError, match="not finite"):
        QuantizedTensor.from_stored(FLOAT16, (1,), "w", {"w": torch.tensor([float("inf")], dtype=torch.float16)})


@pytest.mark.parametrize("text", ["int4-row", "int3-g64", "int6-sym-g32-p2", "int5-g32-s8", "sign"])
def test_a_tensor_by_columns_comes_back_and_takes_the_same_bytes(text):
    tensor = random_tensor(Format.parse(text), (150, 70), seed=1)
    here, there = tensor.stored("w"), tensor.stored("w", by_columns=True)
    assert {name: part.numel() for name, part in here.items()} == {name: part.numel() for name, part in there.items()}
    back = QuantizedTensor.from_stored(tensor.format, tensor.shape, "w", there, by_columns=True)
    assert torch.equal(back.dequantize(), tensor.dequantize())
    wrong = QuantizedTensor.from_stored(tensor.format, tensor.shape, "w", there)
    assert not torch.equal(wrong.dequantize(), tensor.dequantize())
