"""AWQ by the outputs that it is for, by its exponents, and on what would break it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm.errors import AllocationError, FormatError
from qslm.formats import Format
from qslm.formats.quantized import QuantizedTensor
from qslm.quantizers import InputStatistics, awq_gptq, gptq, round_site, search_exponents
from qslm.quantizers.awq import JUDGE, ROWS, quantize
from qslm.quantizers.clip import search_grid
from qslm.quantizers.grid import quantize_to
from qslm.quantizers.statistics import LEAST

FORMATS = [
    Format.parse(f"int{bits}{symmetric}-{grain}")
    for bits in (1, 2, 3, 4, 8, 16)
    for symmetric in ("", "-sym")
    for grain in ("tensor", "row", "g32", "row-s32")
]


def drawn(rows: int, columns: int, seed: int = 0, skew: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (rows, columns), and the moment of inputs whose sizes are e^(skew z), z normal."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.exp(skew * torch.randn(columns, generator=generator))
    inputs = torch.randn(300, columns, generator=generator) * sizes
    return torch.randn(rows, columns, generator=generator) * 0.1, inputs.T @ inputs / 300


def loss(weight: torch.Tensor, rounded: torch.Tensor, moment: torch.Tensor) -> float:
    """E |(W - W_hat) x|^2."""
    error = (rounded - weight).double()
    return float(((error @ moment.double()) * error).sum())


def clipped(weight: torch.Tensor, format: Format, squares: torch.Tensor) -> QuantizedTensor:
    """Clip search that weighs columns by the squares of their inputs."""
    return quantize_to(weight, search_grid(weight, format, "w", (squares / squares.double().mean()).float()), format)


def searched(weight: torch.Tensor, moment: torch.Tensor, degree: int = 1) -> InputStatistics:
    return InputStatistics(moment, 300, search_exponents([weight], [moment], degree))


@pytest.mark.parametrize("grain", ["row", "g32", "g64-s32"])
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_inputs_of_unlike_sizes_lose_less_than_with_clip_search(bits, grain):
    weight, moment = drawn(48, 160)
    format = Format.parse(f"int{bits}-{grain}")
    plain = loss(weight, round_site(weight, format, "clip").dequantize(), moment)
    assert loss(weight, quantize(weight, format, inputs=searched(weight, moment)).dequantize(), moment) < 0.6 * plain


@given(st.integers(1, 12), st.integers(1, 50), st.sampled_from([1, 2]), st.floats(0, 4), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_whatever_the_inputs_exponents_lose_no_more_than_none_and_are_in_range(rows, columns, degree, skew, seed):
    weight, moment = drawn(rows, columns, seed, skew)
    inputs = searched(weight, moment, degree)
    if inputs.exponents is not None:
        assert inputs.exponents.dtype == torch.int8 and int(inputs.exponents.max()) == 0
        assert LEAST <= int(inputs.exponents.min()) < 0 and not bool((inputs.exponents % degree).any())
    plain = loss(weight, quantize(weight, JUDGE, inputs=InputStatistics(moment, 1)).dequantize(), moment)
    assert loss(weight, quantize(weight, JUDGE, inputs=inputs).dequantize(), moment) <= plain * (1 + 1e-5)


@given(st.sampled_from(FORMATS), st.integers(1, 20), st.integers(1, 70), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_it_is_clip_search_in_the_scaled_space_in_any_shape_and_format(format, rows, columns, seed):
    weight, moment = drawn(rows, columns, seed)
    exponents = torch.randint(LEAST, 1, (columns,), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    found = quantize(weight, format, inputs=InputStatistics(moment, 1, exponents))
    scales = 2.0 ** exponents.double()
    scaled = clipped((weight.double() * scales).float(), format, moment.diagonal().double() / scales.square())
    assert torch.equal(found.codes, scaled.codes) and torch.equal(found.scales, scaled.scales)
    assert torch.equal(found.dequantize().double(), scaled.dequantize().double() / scales)


@given(st.sampled_from(FORMATS), st.integers(1, 20), st.integers(1, 70), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_with_gptq_it_is_gptq_in_the_scaled_space_in_any_shape_and_format(format, rows, columns, seed):
    weight, moment = drawn(rows, columns, seed)
    exponents = torch.randint(LEAST, 1, (columns,), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    found = awq_gptq.quantize(weight, format, inputs=InputStatistics(moment, 1, exponents))
    scales = 2.0 ** exponents.double()
    seen = (moment.double() / scales / scales[:, None]).float()
    scaled = gptq.quantize((weight.double() * scales).float(), format, inputs=InputStatistics(seen, 1))
    assert torch.equal(found.codes, scaled.codes) and torch.equal(found.scales, scaled.scales)
    assert torch.equal(found.dequantize().double(), scaled.dequantize().double() / scales)
    plain = awq_gptq.quantize(weight, format, inputs=InputStatistics(moment, 1))
    assert plain.exponents is None
    assert torch.equal(plain.codes, gptq.quantize(weight, format, inputs=InputStatistics(moment, 1)).codes)


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_with_gptq_correlated_inputs_of_unlike_sizes_lose_less_than_with_either_alone(bits):
    weight, moment = drawn(48, 160)
    mixing = torch.randn(160, 160, generator=torch.Generator().manual_seed(5)) / 160**0.5 + torch.eye(160)
    sizes = moment.diagonal().sqrt()
    moment = sizes[:, None] * (mixing.T @ mixing) * sizes
    inputs, format = searched(weight, moment), Format.parse(f"int{bits}-row")
    methods = awq_gptq.quantize, quantize, gptq.quantize
    rounded = [method(weight, format, inputs=inputs).dequantize() for method in methods]
    both, scaled, compensated = (loss(weight, one, moment) for one in rounded)
    assert both < 0.8 * scaled and both < 0.8 * compensated


def test_the_exponents_follow_the_inputs_and_are_shared_by_what_reads_them():
    weights, moments = zip(*(drawn(40, 64, seed, skew=1.5) for seed in (0, 0)), strict=True)
    alone, both = search_exponents(weights[:1], moments[:1]), search_exponents(weights, moments)
    assert torch.equal(alone, both)
    by_size = alone[moments[0].diagonal().argsort()].int()
    assert bool((by_size.diff() >= 0).all()) and int(by_size[0]) < int(by_size[-1]) == 0


def test_equal_inputs_are_not_scaled():
    weight, _ = drawn(20, 40)
    assert search_exponents([weight], [torch.eye(40)]) is None


def test_without_a_fold_it_is_clip_search_that_weighs_columns():
    weight, moment = drawn(20, 40)
    found = quantize(weight, Format.parse("int3-g32"), inputs=InputStatistics(moment, 1))
    assert found.exponents is None
    assert torch.equal(found.codes, clipped(weight, Format.parse("int3-g32"), moment.diagonal()).codes)
    plain = round_site(weight, Format.parse("int3-g32"), "clip").dequantize()
    diagonal = moment.diagonal().diag()
    assert loss(weight, found.dequantize(), diagonal) < loss(weight, plain, diagonal)


def test_dead_inputs_count_as_the_least_of_the_others():
    weight, moment = drawn(30, 40, skew=1.0)
    moment[7] = moment[:, 7] = 0
    found = search_exponents([weight], [moment])
    alive = torch.arange(40) != 7
    assert int(found[7]) == int(found[alive].min()) < 0


@pytest.mark.parametrize("moment", [torch.zeros(40, 40), torch.ones(40, 40), torch.full((40, 40), 1e-30)])
def test_a_singular_moment_scales_nothing(moment):
    assert search_exponents([drawn(6, 40)[0]], [moment]) is None


@pytest.mark.parametrize("moment", [torch.zeros(40, 40), torch.ones(40, 40), torch.full((40, 40), 1e-30)])
def test_with_gptq_a_singular_moment_and_dead_inputs_are_damped(moment):
    weight, _ = drawn(6, 40)
    moment[7] = moment[:, 7] = 0
    exponents = (torch.arange(40) % 9 - 8).to(torch.int8)
    found = awq_gptq.quantize(weight, Format.parse("int8-row"), inputs=InputStatistics(moment, 1, exponents))
    assert bool(torch.isfinite(found.dequantize()).all())
    assert loss(weight, found.dequantize(), moment) <= 2e-2 * loss(weight, torch.zeros(6, 40), moment)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_that_are_not_finite_scale_nothing_and_are_refused_by_name_when_rounded(value):
    weight, moment = drawn(6, 20)
    broken = weight.clone()
    broken[0, 0] = value
    inputs = InputStatistics(moment, 1, search_exponents([broken], [moment]))
    assert inputs.exponents is None
    with pytest.raises(FormatError, match="emb has 1 numbers that are not finite"):
        round_site(broken, Format.parse("int4-row"), "awq", name="emb", inputs={"emb": inputs})
    assert search_exponents([weight], [moment * value]) is None
    with pytest.raises(FormatError, match="emb: the inputs that it sees on the calibration text are not finite"):
        quantize(weight, Format.parse("int4-row"), name="emb", inputs=InputStatistics(moment * value, 1))


@pytest.mark.parametrize("factor", [1e-30, 1e-6, 1e6, 1e30])
def test_weights_of_any_size_are_scaled_alike(factor):
    weight, moment = drawn(30, 40)
    assert torch.equal(search_exponents([weight * factor], [moment]), search_exponents([weight], [moment]))


@pytest.mark.parametrize(
    "exponents",
    [torch.zeros(39, dtype=torch.int8), torch.zeros(40, dtype=torch.int32), torch.full((40,), 1, dtype=torch.int8)],
)
def test_exponents_of_another_matrix_are_refused(exponents):
    weight, moment = drawn(6, 40)
    with pytest.raises(FormatError, match=r"att\.key: the exponents of its 40 inputs are"):
        quantize(weight, JUDGE, name="att.key", inputs=InputStatistics(moment, 1, exponents))


def test_a_matrix_narrower_than_its_group_and_one_of_many_rows():
    weight, moment = drawn(6, 20)
    assert quantize(weight, Format.parse("int4-g128"), inputs=searched(weight, moment)).scales.shape == (6, 1)
    weight, moment = drawn(2 * ROWS + 1, 20)
    assert torch.equal(search_exponents([weight], [moment]), search_exponents([weight[::3]], [moment]))


def test_the_same_call_gives_the_same_bits_whatever_the_threads():
    weight, moment = drawn(40, 96)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            exponents = search_exponents([weight], [moment])
            inputs = InputStatistics(moment, 300, torch.arange(96).to(torch.int8) % 3 - 2)
            rounded = quantize(weight, Format.parse("int3-g32"), inputs=inputs)
            found.append((rounded.codes.tolist(), None if exponents is None else exponents.tolist()))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_without_statistics_it_is_refused_and_scaled_columns_are_not_stored():
    weight, moment = drawn(6, 20)
    with pytest.raises(AllocationError, match="awq rounds emb by what it sees on calibration text"):
        round_site(weight, JUDGE, "awq", name="emb")
    rounded = round_site(weight, JUDGE, "awq", name="emb", inputs={"emb": searched(weight, moment)})
    with pytest.raises(AllocationError, match="The columns of emb are scaled, and no file holds the scales"):
        rounded.stored("emb")
