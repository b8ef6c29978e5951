import itertools

import pytest
import torch

from qslm.errors import FormatError
from qslm.formats import ACTIVATIONS, BFLOAT16, FLOAT16, FLOAT32, GROUP_SIZES, INTEGER_BITS, SIGN, Format, matrix_shape
from qslm.formats.dtypes import code_dtype

GRAINS = [("tensor", 0), ("row", 0), *(("group", size) for size in GROUP_SIZES)]
INTEGERS = [
    Format("integer", bits, symmetric, grain, size, scale)
    for bits, symmetric, (grain, size), scale in itertools.product(
        INTEGER_BITS, (False, True), GRAINS, ("float16", "float32", "uint8")
    )
    if (grain, scale) != ("tensor", "uint8")
]
READING = [
    Format("integer", bits, True, "row", 0, scale, activations=read)
    for bits, scale, read in itertools.product(range(2, 9), ("float16", "float32"), ACTIVATIONS)
    if bits in INTEGER_BITS
]
SHIFTED = [
    Format("integer", bits, True, "group", size, "power", activations=read)
    for bits, size, read in itertools.product(range(2, 8), GROUP_SIZES, (0, *ACTIVATIONS))
]
ALL = [*INTEGERS, *READING, *SHIFTED, FLOAT32, FLOAT16, BFLOAT16, SIGN]


def test_there_are_all_formats():
    assert len(INTEGERS) == 12 * 2 * (5 * 3 - 1)
    assert len(set(ALL)) == len({str(format) for format in ALL}) == len(ALL)


@pytest.mark.parametrize("format", ALL, ids=str)
def test_text_and_back(format):
    assert Format.parse(str(format)) == format
    assert hash(Format.parse(str(format))) == hash(format)


@pytest.mark.parametrize(
    ("text", "format"),
    [
        ("int4", Format("integer", 4)),
        ("int4-row", Format("integer", 4)),
        ("int4-g64", Format("integer", 4, False, "group", 64)),
        ("int8-sym-tensor", Format("integer", 8, True, "tensor")),
        ("int8-sym", Format("integer", 8, True)),
        ("int4-g128-s32", Format("integer", 4, False, "group", 128, "float32")),
        ("int3-g32-s8", Format("integer", 3, False, "group", 32, "uint8")),
        ("int4-sym-row-s8", Format("integer", 4, True, "row", 0, "uint8")),
        ("bfloat16", BFLOAT16),
    ],
)
def test_texts_of_the_documentation(text, format):
    assert Format.parse(text) == format


@pytest.mark.parametrize(
    "text",
    [
        "int4-g32-s16", "int4-g32-s8-s32", "int4-s8-g32", "int4-g32-s08", "float16-s8", "sign-s8",
        "", "int", "int9", "int0-row", "int04", "int11-row", "int32", "int4-g16", "int4-g", "int4-g064", "int4-col",
        "int4-row-sym", "float8", "float64", "bfloat32", "sign-row", "INT4", " int4", "int4\n", "int٤", "x" * 9999,
    ],
)  # fmt: skip
def test_other_texts_are_refused(text):
    with pytest.raises(FormatError) as caught:
        Format.parse(text)
    assert "int4-g64" in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "fields",
    [
        ("integer", 9), ("integer", "4"), ("float", 8), ("sign", 2), ("text", 4), ("integer", 4, False, "column"),
        ("integer", 4, False, "group", 0), ("integer", 4, False, "row", 64), ("float", 32, True),
        ("integer", 4, False, "row", 0, "bfloat16"), ("float", 32, False, "tensor"),
        ("float", 32, False, "row", 0, "float16", True), ("integer", 4, False, "row", 0, "float16", True),
        ("sign", 1, False, "row", 0, "float16", True), ("sign", 1, False, "row", 64),
        ("float", 32, False, "row", 0, "uint8"), ("integer", 4, False, "row", 0, "int8"),
    ],
)  # fmt: skip
def test_other_fields_are_refused(fields):
    with pytest.raises(FormatError):
        Format(*fields)


@pytest.mark.parametrize(
    "text",
    ["int4-row-a4", "int4-sym-g64-a4", "int4-sym-tensor-a4", "int10-sym-row-a4", "int1-sym-row-a4",
     "int4-sym-row-s8-a4", "int4-sym-row-a9", "int4-sym-row-a1", "float32-a4",
     "int4-sym-row-a4-s32", "int4-sym-row-a04"],
)  # fmt: skip
def test_spike_counts_are_read_by_weights_that_a_threshold_can_hold(text):
    with pytest.raises(FormatError):
        Format.parse(text)


@pytest.mark.parametrize("text", ["int4-tensor-s8", "int8-sym-tensor-s8"])
def test_a_single_scale_in_8_bits_is_refused(text):
    with pytest.raises(FormatError, match="A single scale per tensor gains nothing from 8 bits"):
        Format.parse(text)


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("int3-g32", 3 + 19 / 32), ("int3-g32-s8", 3 + 11 / 32), ("int3-g32-s32", 3 + 35 / 32),
        ("int4-sym-g64-s8", 4 + 8 / 64), ("int4-row-s8", 4),
    ],
)  # fmt: skip
def test_bits_per_weight_count_the_scales(text, bits):
    assert Format.parse(text).bits_per_weight == bits


@pytest.mark.parametrize("format", INTEGERS, ids=str)
def test_codes_fit_their_type_and_hold_zero(format):
    limits = torch.iinfo(code_dtype(format))
    assert limits.min <= format.lowest <= 0 <= format.highest <= limits.max
    assert format.highest - format.lowest == 2**format.bits - 1
    assert format.span == (2 ** (format.bits - 1) if format.symmetric else 2**format.bits - 1)


@pytest.mark.parametrize(
    ("text", "rows", "columns", "expected"),
    [
        ("int4-g64", 4, 100, (4, 2)), ("int4-g64", 4, 128, (4, 2)), ("int4-g128", 4, 5, (4, 1)),
        ("int4-row", 4, 100, (4, 1)), ("int4-tensor", 4, 100, (1, 1)),
    ],
)  # fmt: skip
def test_scale_shape(text, rows, columns, expected):
    assert Format.parse(text).scale_shape(rows, columns) == expected


def test_matrix_shape():
    assert [matrix_shape(shape) for shape in [(), (5,), (2, 3), (2, 3, 4)]] == [(1, 1), (1, 5), (2, 3), (2, 12)]
