"""GPTQ by the outputs that it is for, against a naive loop, and on what would break it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm.errors import AllocationError, FormatError
from qslm.formats import Format
from qslm.quantizers import InputStatistics, round_site
from qslm.quantizers.clip import search_grid
from qslm.quantizers.gptq import DAMPING, quantize

FORMATS = [
    Format.parse(f"int{bits}{symmetric}-{grain}")
    for bits in (1, 2, 3, 4, 8, 16)
    for symmetric in ("", "-sym")
    for grain in ("tensor", "row", "g32", "row-s8", "g32-s8")
]


def drawn(rows: int, columns: int, seed: int = 0, tokens: int = 400) -> tuple[torch.Tensor, InputStatistics]:
    """A weight, and the statistics of inputs that are correlated, as those of a network are."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns)
    inputs = torch.randn(tokens, columns, generator=generator) @ mixing * torch.rand(columns, generator=generator)
    weight = torch.randn(rows, columns, generator=generator) * 0.1
    return weight, InputStatistics(inputs.T @ inputs / tokens, tokens)


def loss(weight: torch.Tensor, rounded: torch.Tensor, inputs: InputStatistics) -> float:
    """E |(W - W_hat) x|^2."""
    error = (rounded - weight).double()
    return float(((error @ inputs.moment.double()) * error).sum())


@pytest.mark.parametrize("grain", ["tensor", "row", "g32", "g64-s32", "g32-s8"])
@pytest.mark.parametrize(("bits", "most"), [(4, 0.6), (3, 0.6), (2, 0.7)])
def test_its_outputs_are_closer_than_those_of_clip_search(bits, most, grain):
    weight, inputs = drawn(48, 160)
    format = Format.parse(f"int{bits}-{grain}")
    plain = round_site(weight, format, "clip").dequantize()
    found = quantize(weight, format, inputs=inputs).dequantize()
    assert loss(weight, found, inputs) < most * loss(weight, plain, inputs)


@given(st.sampled_from(FORMATS), st.integers(1, 20), st.integers(1, 70), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_any_shape_and_format_gives_codes_of_the_format_on_the_grid_of_clip_search(format, rows, columns, seed):
    weight, inputs = drawn(rows, columns, seed)
    found = quantize(weight, format, inputs=inputs)
    on = search_grid(weight, format, "weight", inputs.importance)
    assert found.codes.shape == weight.shape and torch.equal(found.scales, on.scales)
    assert found.step is on.step is None or torch.equal(found.step, on.step)
    assert int(found.codes.min()) >= format.lowest and int(found.codes.max()) <= format.highest
    assert bool(torch.isfinite(found.dequantize()).all())


def test_it_is_the_published_loop():
    """Column after column with the inverse of the remaining Hessian, which needs no factor, in float64."""
    weight, inputs = drawn(5, 12)
    format = Format.parse("int3-row-s32")
    on = search_grid(weight, format, "weight", inputs.importance)
    hessian = inputs.moment.double() + DAMPING * inputs.moment.double().diagonal().mean() * torch.eye(12)
    left, codes = weight.double(), torch.zeros(5, 12, dtype=torch.int64)
    todo = torch.argsort(inputs.moment.diagonal(), descending=True, stable=True).tolist()
    while todo:
        inverse = torch.linalg.inv(hessian[todo][:, todo])
        column = todo[0]
        scale, zero = on.scales[:, 0].double(), on.zeros[:, 0].double()
        codes[:, column] = (torch.round(left[:, column] / scale) + zero).clamp(0, format.highest)
        error = (left[:, column] - (codes[:, column] - zero) * scale) / inverse[0, 0]
        left[:, todo] -= error[:, None] * inverse[0]
        todo = todo[1:]
    assert torch.equal(quantize(weight, format, inputs=inputs).codes.long(), codes)


def test_the_same_call_gives_the_same_bits_whatever_the_threads():
    weight, inputs = drawn(40, 96)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(quantize(weight, Format.parse("int3-g32"), inputs=inputs).codes)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_independent_inputs_of_one_size_leave_plain_rounding():
    weight, _ = drawn(6, 40)
    format = Format.parse("int3-row")
    found = quantize(weight, format, inputs=InputStatistics(torch.eye(40), 1))
    assert torch.equal(found.codes, round_site(weight, format, "clip").codes)


def test_dead_inputs_are_rounded_as_they_are_and_touch_no_other():
    weight, inputs = drawn(6, 40)
    moment = inputs.moment.clone()
    moment[7] = moment[:, 7] = 0
    format = Format.parse("int3-row-s32")
    found = quantize(weight, format, inputs=InputStatistics(moment, 400))
    plain = round_site(weight, format, "clip")
    assert torch.equal(found.codes[:, 7], plain.codes[:, 7])
    assert loss(weight, found.dequantize(), InputStatistics(moment, 400)) < loss(
        weight, plain.dequantize(), InputStatistics(moment, 400)
    )


@pytest.mark.parametrize("moment", [torch.zeros(40, 40), torch.ones(40, 40), torch.full((40, 40), 1e-30)])
def test_a_singular_hessian_is_damped(moment):
    weight, _ = drawn(6, 40)
    found = quantize(weight, Format.parse("int4-row"), inputs=InputStatistics(moment, 1))
    assert float((found.dequantize() - weight).abs().max()) < 0.2


def test_a_hessian_that_is_none_is_refused_by_name():
    moment = 20 * torch.eye(40).flip(0) - torch.eye(40)
    moment[0, 0] = 100.0
    with pytest.raises(FormatError, match=r"att\.key: the Hessian of its inputs cannot be inverted"):
        quantize(drawn(6, 40)[0], Format.parse("int4-row"), name="att.key", inputs=InputStatistics(moment * 1e30, 1))


@pytest.mark.parametrize(
    ("moment", "problem"),
    [(torch.eye(39), "has 40 inputs, the statistics are of 39 x 39"), (torch.eye(40) / 0, "are not finite")],
)
def test_statistics_of_another_matrix_are_refused(moment, problem):
    with pytest.raises(FormatError, match=problem):
        quantize(drawn(6, 40)[0], Format.parse("int4-row"), inputs=InputStatistics(moment, 1))


def test_a_matrix_narrower_than_its_group_is_rounded():
    weight, inputs = drawn(6, 20)
    found = quantize(weight, Format.parse("int4-g128"), inputs=inputs)
    assert found.scales.shape == (6, 1)


def test_without_statistics_it_is_refused_and_without_those_of_a_site_clip_search_rounds():
    weight, inputs = drawn(6, 20)
    format = Format.parse("int4-row")
    with pytest.raises(AllocationError, match="gptq rounds emb by what it sees on calibration text"):
        round_site(weight, format, "gptq", name="emb")
    found = round_site(weight, format, "gptq", name="emb", inputs={"other": inputs})
    assert torch.equal(found.codes, round_site(weight, format, "clip").codes)
    found = round_site(weight, format, "gptq", name="emb", inputs={"emb": inputs})
    assert torch.equal(found.codes, quantize(weight, format, inputs=inputs).codes)


def test_infinite_weights_are_refused_by_name():
    weight, inputs = drawn(6, 20)
    weight[0, 0] = float("inf")
    with pytest.raises(FormatError, match="emb has 1 numbers that are not finite"):
        round_site(weight, Format.parse("int4-row"), "gptq", name="emb", inputs={"emb": inputs})
