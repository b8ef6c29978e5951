"""Products of packed matrices with tokens: every kernel against exact sums, to the bit."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qslm import _native
from qslm.errors import FormatError
from qslm.formats import BFLOAT16, FLOAT16, FLOAT32, SIGN, Format
from qslm.formats.dtypes import code_dtype, scale_dtype, value_dtype
from qslm.formats.quantized import QuantizedTensor
from qslm.formats.scales import multiples
from qslm.runtime.matrix import packed_matrix, round_tokens

KERNELS = _native.kernels()
TEXTS = [
    f"int{bits}{symmetric}-{grain}{scale}"
    for bits in range(1, 9)
    for symmetric in ("", "-sym")
    for grain in ("row", "g32", "g64", "g128", "tensor")
    for scale in ("", "-s32", "-s8")
    if (grain, scale) != ("tensor", "-s8")
]
integers = st.sampled_from(
    [*map(Format.parse, TEXTS), *(Format.parse(f"int{b}-sym-g32-p2") for b in range(2, 8)), SIGN]
)
rows = st.integers(1, 70) | st.sampled_from([64, 96, 128, 144, 300])
columns = st.integers(1, 70) | st.sampled_from([64, 96, 128, 172, 300])


@pytest.fixture(autouse=True)
def best_kernels():
    yield
    _native.choose_kernels(None)


def random_tensor(format: Format, shape: tuple[int, int], seed: int) -> QuantizedTensor:
    generator = torch.Generator().manual_seed(seed)
    if format.kind == "float":
        return QuantizedTensor(format, shape, values=torch.randn(shape, generator=generator).to(value_dtype(format)))

    def draw(low: int, high: int, size: tuple[int, int]) -> torch.Tensor:
        return torch.randint(low, high + 1, size, generator=generator).to(code_dtype(format))

    if format.kind == "sign":
        return QuantizedTensor(format, shape, codes=draw(0, 1, shape))
    grid = format.scale_shape(*shape)
    scales, step = (torch.rand(grid, generator=generator) + 0.01).to(scale_dtype(format)), None
    if format.has_step:
        step = torch.rand(format.step_shape(shape[0]), generator=generator) + 0.5
        low, high = (0, format.most_shift) if format.scale_type == "power" else (1, 255)
        scales = multiples(torch.randint(low, high + 1, grid, generator=generator), step, format)
    zeros = draw(0, format.highest, grid) if format.has_zeros else None
    return QuantizedTensor(format, shape, draw(format.lowest, format.highest, shape), scales, zeros, step=step)


def random_tokens(count: int, width: int, density: float, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(count, width)) * (generator.random((count, width)) < density)).astype(np.float32)


def expected(tensor: QuantizedTensor, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The definition of `native/products/matrix.h`: exact sums of groups, then float32 in the order of the groups."""
    height, width = tensor.shape
    size = tensor.format.group_size or width
    y = np.zeros((len(codes), height), np.float32)
    for group in range(-(-width // size)):
        part = slice(group * size, min((group + 1) * size, width))
        weights = tensor.codes[:, part].numpy().astype(np.int64)
        if tensor.format.kind == "sign":
            weights, factor = 2 * weights - 1, np.ones(1, np.float32)
        else:
            at = group if tensor.scales.shape[1] > 1 else 0
            weights = weights - (0 if tensor.zeros is None else tensor.zeros[:, at : at + 1].numpy().astype(np.int64))
            factor = tensor.scales[:, at].float().numpy()
        exact = codes[:, part].astype(np.int64) @ weights.T
        y += exact.astype(np.float32) * factor
    return y * scales[:, None]


@given(integers, rows, columns, st.integers(1, 9), st.booleans(), st.sampled_from([0.0, 0.1, 1.0]), st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_every_kernel_gives_the_bits_of_the_definition(format, height, width, count, by_columns, density, seed):
    tensor = random_tensor(format, (height, width), seed)
    codes, scales = round_tokens(random_tokens(count, width, density, seed))
    matrix, wanted = packed_matrix(tensor, by_columns=by_columns), expected(tensor, codes[:, :width], scales)
    for name in KERNELS:
        _native.choose_kernels(name)
        y = np.full((count, height), np.nan, np.float32)
        matrix.multiply(codes, scales, y)
        assert np.array_equal(y, wanted), name


@given(integers | st.sampled_from([FLOAT32, FLOAT16, BFLOAT16]), rows, columns, st.booleans(), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_products_with_floats_follow_their_order_of_summation(format, height, width, by_columns, seed):
    tensor = random_tensor(format, (height, width), seed)
    by_columns = by_columns and format.kind != "float"
    tokens, y = random_tokens(2, width, 1.0, seed), np.empty((2, height), np.float32)
    packed_matrix(tensor, by_columns=by_columns).multiply_floats(tokens, y)
    weights = tensor.dequantize().numpy()
    lanes = np.zeros((2, height, 16), np.float32)
    for column in range(width):
        lanes[:, :, column % 16] += weights[:, column] * tokens[:, column : column + 1]
    for half in (8, 4, 2, 1):
        lanes[:, :, :half] += lanes[:, :, half : 2 * half]
    assert np.array_equal(y, lanes[:, :, 0])


@given(integers | st.sampled_from([FLOAT32, FLOAT16, BFLOAT16]), rows, columns, st.booleans(), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_row_is_that_of_the_tensor(format, height, width, by_columns, seed):
    tensor = random_tensor(format, (height, width), seed)
    matrix = packed_matrix(tensor, by_columns=by_columns and format.kind != "float")
    weights, values = tensor.dequantize().numpy(), np.empty(width, np.float32)
    for row in {0, height // 2, height - 1}:
        matrix.read_row(row, values)
        assert np.array_equal(values, weights[row] > 0 if format.kind == "sign" else weights[row])


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("height", [50, 3000])
def test_threads_give_the_same_bits(height, by_columns):
    tensor = random_tensor(Format.parse("int5-g64"), (height, 200), 0)
    codes, scales = round_tokens(random_tokens(3, 200, 0.5, 1))
    matrix, wanted = packed_matrix(tensor, by_columns=by_columns), expected(tensor, codes[:, :200], scales)
    for count in (1, 2, 3, 8):
        threads = _native.Threads(count)
        for _ in range(20):
            y = np.full((3, height), np.nan, np.float32)
            matrix.multiply(codes, scales, y, threads)
            assert np.array_equal(y, wanted)


def test_the_widest_matrix_does_not_overflow():
    width = 1 << 16
    tensor = random_tensor(Format.parse("int8-row"), (32, width), 0)
    tensor.codes[:], tensor.zeros[:] = 255, 0
    codes, scales = np.full((1, width), 127, np.int8), np.ones(1, np.float32)
    for name in KERNELS:
        _native.choose_kernels(name)
        y = np.empty((1, 32), np.float32)
        packed_matrix(tensor).multiply(codes, scales, y)
        assert np.array_equal(y, expected(tensor, codes, scales))


@given(st.lists(st.floats(width=32), min_size=1, max_size=70))
@example([3.923635700109488e-44])
@settings(max_examples=200, deadline=None)
def test_a_token_is_rounded_to_the_nearest_of_127_steps(values):
    x, codes = np.array(values, np.float32), np.full(128, 3, np.int8)
    scale = _native.round_token(x, codes)
    assert np.isfinite(scale) and scale > 0 and not codes[len(x) :].any()
    assert not codes[: len(x)][np.isnan(x)].any()
    finite = np.isfinite(x)
    if finite.all() and 1e-30 < np.abs(x).max() < 1e30:
        assert scale == np.float32(np.abs(x).max() / np.float32(127))
        assert np.abs(codes[: len(x)] * np.float64(scale) - x).max() <= 0.501 * scale
        assert np.abs(codes).max() == 127


def test_what_no_kernel_reads_is_refused():
    with pytest.raises(FormatError, match="int10-row"):
        packed_matrix(random_tensor(Format.parse("int10-row"), (4, 4), 0))
    with pytest.raises(ValueError, match="no such kernels"):
        _native.choose_kernels("sse")
    matrix = packed_matrix(random_tensor(Format.parse("int4-row"), (4, 40), 0))
    with pytest.raises(ValueError, match="stride"):
        matrix.multiply(np.zeros((1, 40), np.int8), np.ones(1, np.float32), np.zeros((1, 4), np.float32))
    with pytest.raises(ValueError, match="shapes"):
        matrix.multiply(np.zeros((2, 64), np.int8), np.ones(1, np.float32), np.zeros((2, 4), np.float32))
