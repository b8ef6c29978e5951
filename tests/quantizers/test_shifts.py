"""Scales that are shifts of one step a row: what a threshold can hold of groups."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizers.test_gptq import drawn
from quantizers.test_grid import squared
from quantizers.test_minmax import random_weight

from qslm.errors import ArtifactError, FormatError
from qslm.formats import Format
from qslm.formats.quantized import QuantizedTensor
from qslm.formats.scales import multiples, scale_codes
from qslm.quantizers import QUANTIZERS, round_site
from qslm.spiking.layer import FLOAT, RoundedLayer

FORMATS = [Format.parse(f"int{bits}-sym-{grain}-p2") for bits in (2, 3, 4, 5, 6, 7) for grain in ("g32", "g64", "g128")]


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@given(st.sampled_from(FORMATS), st.integers(1, 9), st.integers(1, 150), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_every_scale_is_a_shift_of_its_rows_step(quantizer, format, rows, columns, seed):
    weight = random_weight((rows, columns), seed)
    rounded = round_site(weight, format, quantizer, inputs={"weight": drawn(rows, columns, seed)[1]})
    shifts = scale_codes(rounded.scales, rounded.step, format)
    assert torch.equal(multiples(shifts, rounded.step, format), rounded.scales)
    assert rounded.step.shape == (rows, 1) and int(shifts.max()) <= format.most_shift
    assert bool(torch.isfinite(rounded.dequantize()).all())
    if rounded.exponents is None:
        read = QuantizedTensor.from_stored(format, rounded.shape, "w", rounded.stored("w"))
        assert torch.equal(read.dequantize(), rounded.dequantize())
        assert torch.equal(RoundedLayer(rounded, None, FLOAT).weight, rounded.dequantize())


def test_minmax_clips_nothing():
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 0, 128)
    rounded = round_site(weight, Format.parse("int4-sym-g32-p2"), "minmax")
    off = (rounded.dequantize() - weight).abs()
    assert bool((off <= rounded.scales.repeat_interleave(32, 1) / 2 * (1 + 1e-6)).all())


@pytest.mark.parametrize("bits", [3, 4])
def test_clip_search_is_better_than_rows_and_worse_than_free_scales(bits):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 256, generator=generator) * torch.rand(64, 4, generator=generator).exp().repeat(1, 64)
    rows, shifted, free = (
        squared(weight, f"int{bits}-sym-{grain}", "clip") for grain in ("row", "g32-p2", "g32")
    )  # fmt: skip
    assert free < shifted < rows
    assert shifted <= squared(weight, f"int{bits}-sym-g32-p2", "minmax")


def test_nothing_but_zeros_stays_zero():
    rounded = round_site(torch.zeros(3, 40), Format.parse("int3-sym-g32-p2"), "clip")
    assert rounded.step.unique().tolist() == [1.0] and not rounded.dequantize().any()


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("w.scales", lambda one: one.fill_(5), "a shift is beyond 8 bits"),
        ("w.step", lambda one: one.neg_(), "not positive and finite"),
        ("w.step", lambda one: one.fill_(float("nan")), "not positive and finite"),
        ("w.step", lambda one: one.fill_(3e38), "not a number that float32"),
    ],
)
def test_altered_steps_and_shifts_are_refused(name, change, told):
    format = Format.parse("int4-sym-g32-p2")
    stored = round_site(torch.randn(4, 70), format).stored("w")
    change(stored[name])
    with pytest.raises(ArtifactError, match=told):
        QuantizedTensor.from_stored(format, (4, 70), "w", stored)


@pytest.mark.parametrize("text", ["int4-g64-p2", "int4-sym-row-p2", "int8-sym-g64-p2", "int1-sym-g32-p2"])
def test_formats_without_shifts(text):
    with pytest.raises(FormatError, match="Scales that are shifts"):
        Format.parse(text)
