import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm.formats import INTEGER_BITS, Format
from qslm.quantizers import round_site

FORMATS = [
    Format.parse(f"int{bits}{symmetric}-{grain}")
    for bits in INTEGER_BITS
    for symmetric in ("", "-sym")
    for grain in ("tensor", "row", "g32", "row-s8", "g32-s8")
]


def errors(weight: torch.Tensor, format: Format, quantizer: str) -> torch.Tensor:
    """Squared error of every scale, float64."""
    squared = (round_site(weight, format, quantizer).dequantize().double() - weight.double()) ** 2
    if format.granularity == "tensor":
        return squared.sum()
    size = format.group_size or weight.shape[1]
    padded = torch.nn.functional.pad(squared, (0, -weight.shape[1] % size))
    return padded.reshape(weight.shape[0], -1, size).sum(-1)


@given(st.sampled_from(FORMATS), st.integers(1, 6), st.integers(1, 150), st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_no_scale_does_worse_than_with_min_max(format, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) ** 3 * 1e-3
    ours, plain = errors(weight, format, "clip"), errors(weight, format, "minmax")
    assert bool((ours <= plain * (1 + 1e-4) + 1e-15).all())


@pytest.mark.parametrize("symmetric", ["", "-sym"])
@pytest.mark.parametrize(("bits", "least"), [(2, 2.5), (3, 1.5), (4, 1.15)])
def test_it_wins_clearly_on_gaussian_rows(symmetric, bits, least):
    weight = torch.randn(64, 768, generator=torch.Generator().manual_seed(0))
    format = Format.parse(f"int{bits}{symmetric}-row")
    gain = errors(weight, format, "minmax").sum() / errors(weight, format, "clip").sum()
    assert gain > least


def test_an_outlier_is_clipped_in_its_own_group_only():
    weight = torch.rand(2, 64, generator=torch.Generator().manual_seed(0)) - 0.5
    weight[0, 3] = 4.0
    format = Format.parse("int3-g32")
    clipped, plain = (round_site(weight, format, quantizer) for quantizer in ("clip", "minmax"))
    assert float(clipped.scales[0, 0]) < float(plain.scales[0, 0])
    assert float(clipped.dequantize()[0, 3]) < 4.0


def test_it_comes_close_to_an_exhaustive_search():
    weight = torch.randn(1, 400, generator=torch.Generator().manual_seed(3))
    format = Format.parse("int3-row-s32")
    best = min(
        float(((weight - (weight.clamp(low * r, high * r) / s).round() * s) ** 2).sum())
        for r in torch.linspace(0.05, 1, 400)
        for low, high in [(float(weight.min()), float(weight.max()))]
        for s in [(high - low) * r / 7]
    )
    assert float(errors(weight, format, "clip").sum()) < 1.1 * best


def test_it_is_deterministic():
    weight = torch.randn(20, 300, generator=torch.Generator().manual_seed(1))
    one, two = (round_site(weight, Format.parse("int3-g64"), "clip") for _ in range(2))
    assert torch.equal(one.codes, two.codes)
    assert torch.equal(one.scales, two.scales)
