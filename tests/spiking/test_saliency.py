from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm.errors import SpikeError
from qslm.spiking import (
    Monitor,
    StaticSaliency,
    calibrate,
    calibrate_ratio,
    deviations,
    salient,
    salient_ratio,
    threshold_for,
)
from qslm.spiking.saliency import activations


def heavy_tailed(tokens: int, width: int, seed: int = 0, freedom: float = 4.0) -> torch.Tensor:
    """Student's t, which inputs of linear layers resemble."""
    generator = torch.Generator().manual_seed(seed)
    chi = torch.randn(tokens, width, int(freedom), generator=generator).square().sum(-1)
    return torch.randn(tokens, width, generator=generator) * (freedom / chi).sqrt()


def by_definition(token: torch.Tensor) -> tuple[float, float]:
    """Median and MAD of one token with the guards, by Python's own sort."""

    def lower(values):
        return sorted(values)[(len(values) - 1) // 2]

    def both(values):
        center = lower(values)
        away = [float(np.abs(np.float32(v) - np.float32(center))) for v in values]
        return center, lower(away), sum(away) / len(away)

    center, mad, _ = both(token.tolist())
    rest = [v for v in token.tolist() if v != 0]
    if mad == 0 and rest:
        center, mad, mean = both(rest)
        mad = mad or mean * 1.2533 * 0.6745
    return center, mad


values = st.sampled_from([0.0, 0.0, 0.0, 1.0, 1.0, -1.0, 2.5, 7.0, -40.0]) | st.floats(-1e4, 1e4, width=32)


@given(st.integers(1, 9).flatmap(lambda w: st.lists(st.lists(values, min_size=w, max_size=w), min_size=1, max_size=6)))
@settings(max_examples=200, deadline=None)
def test_median_and_mad_follow_their_definition(tokens):
    x = torch.tensor(tokens)
    center, mad = deviations(x)
    expected = torch.tensor([by_definition(token) for token in x])
    torch.testing.assert_close(torch.cat((center, mad), 1), expected, rtol=1e-6, atol=0)
    assert torch.equal(center[mad == 0] == 0, ~(x != 0).any(1, keepdim=True)[mad == 0])


def test_median_is_that_of_pytorch():
    x = heavy_tailed(33, 577)
    center, mad = deviations(x)
    median = x.median(-1, keepdim=True).values
    assert torch.equal(center, median)
    assert torch.equal(mad, (x - median).abs().median(-1, keepdim=True).values)


@pytest.mark.parametrize(("freedom", "lowest", "highest"), [(3, 0.025, 0.032), (4, 0.016, 0.021), (5, 0.011, 0.015)])
def test_heavy_tails_have_the_known_ratio(freedom, lowest, highest):
    """The table of the derivation: 2.85, 1.84 and 1.30 % for t3, t4 and t5."""
    assert lowest < salient_ratio(salient(heavy_tailed(200, 1024, freedom=freedom))) < highest


def test_salient_does_not_depend_on_scale_or_leading_shape():
    x = heavy_tailed(24, 64)
    mask = salient(x)
    assert mask.any()
    assert torch.equal(salient(x * 1024), mask)
    assert torch.equal(salient(x.reshape(2, 3, 4, 64)), mask.reshape(2, 3, 4, 64))
    assert deviations(x.reshape(4, 6, 64))[0].shape == (4, 6, 1)


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ([0.0] * 8, []),  # all zeros
        ([3.0] * 8, []),  # constant
        ([0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0], []),  # spikes already
        ([5.0], []),  # one column
        ([0.0] * 9 + [4.0, 5.0, 4.0, 6.0, 5.0, 900.0], [14]),  # after a ReLU: by the MAD of the non-zeros
        ([0.0] * 20 + [2.0] * 9 + [50.0], [29]),  # by their mean absolute deviation
        ([0.0, 10.0, 10.1, 9.9, 10.0, 10.2, 9.8, 10.1], []),  # a zero far from the rest makes no spike
    ],
)
def test_guards(token, expected):
    assert salient(torch.tensor([token])).nonzero()[:, 1].tolist() == expected


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 7)])
def test_no_tokens_are_no_failure(shape):
    assert salient(torch.empty(shape)).shape == shape
    assert salient_ratio(salient(torch.empty(shape))) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_taken(dtype):
    x = heavy_tailed(5, 40).to(dtype)
    assert torch.equal(salient(x), salient(x.float()))


def test_extremes_of_float32_are_taken():
    x = torch.tensor([[3.4e38, -3.4e38, 1.0, 2.0, 3.0], [1e-45, 0.0, 2e-45, 0.0, 0.0]])
    assert salient(x)[0].tolist() == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("x", "told"),
    [
        (torch.tensor([[1.0, 2.0], [1.0, float("nan")]]), "1 are NaN and 0 infinite, the first at token 1, column 1"),
        (torch.tensor([[1.0, float("-inf")]]), "0 are NaN and 1 infinite"),
        (torch.tensor([[1e300]], dtype=torch.float64), "1 infinite"),
        (torch.ones(2, 3, dtype=torch.int8), "torch.int8"),
        (torch.empty(3, 0), r"\(3, 0\)"),
        (torch.tensor(1.0), r"shape \(\)"),
    ],
)
def test_unusable_activations_are_refused_by_name(x, told):
    for function in (activations, salient, deviations, StaticSaliency(0, 1).mask):
        with pytest.raises(SpikeError, match=told):
            function(x)


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan")])
def test_unusable_thresholds_are_refused(threshold):
    with pytest.raises(SpikeError, match="modified z-score"):
        salient(torch.ones(1, 3), threshold)
    with pytest.raises(SpikeError, match="modified z-score"):
        calibrate([torch.ones(1, 3)], threshold)


@pytest.mark.parametrize("ratio", [0.005, 0.025, 0.1])
def test_a_target_ratio_is_met(ratio):
    samples = [heavy_tailed(64, 256, seed) for seed in range(3)]
    static = calibrate_ratio(samples, ratio)
    assert static.ratio == pytest.approx(ratio, abs=1e-4)
    assert salient_ratio(static.mask(torch.cat(samples))) == pytest.approx(static.ratio)
    found = salient_ratio(salient(torch.cat(samples), threshold_for(samples, ratio)))
    assert found == pytest.approx(ratio, abs=1e-4)


def test_a_ratio_that_cannot_be_met_is_refused():
    with pytest.raises(SpikeError, match="not between 0 and 1"):
        calibrate_ratio([torch.ones(2, 3)], 1.0)
    with pytest.raises(SpikeError, match="too few of them deviate"):
        threshold_for([torch.zeros(4, 8)], 0.5)
    assert calibrate_ratio([torch.zeros(4, 8)], 0.5).ratio == 0


def test_static_saliency_of_one_token_is_the_dynamic_one():
    x = heavy_tailed(1, 400)
    static = calibrate([x])
    assert torch.equal(static.mask(x), salient(x))
    assert static.ratio == salient_ratio(salient(x)) > 0
    assert (static.spread, static.tokens) == (0, 1)


def test_constant_calibration_finds_nothing():
    assert not calibrate([torch.full((3, 4), 2.0)]).mask(torch.tensor([[2.0, 3.0, 1e9, -4.0]])).any()


@pytest.mark.parametrize("samples", [[], [torch.empty(0, 4)], [torch.ones(1, 3), torch.ones(1, 4)]])
def test_calibration_needs_tokens_of_one_width(samples):
    with pytest.raises(SpikeError, match="cannot be calibrated"):
        calibrate(samples)


def test_a_monitor_is_quiet_on_the_same_workload():
    monitor = Monitor(calibrate([heavy_tailed(512, 96, seed=1)]), window=128)
    before = monitor.saliency
    for seed in range(2, 30):
        x = heavy_tailed(40, 96, seed)
        assert torch.equal(monitor.mask(x), before.mask(x))
    assert (monitor.recalibrations, monitor.saliency) == (0, before)
    assert monitor.ratio == pytest.approx(before.ratio, abs=5 * monitor.standard_error)


@pytest.mark.parametrize("factor", [0.25, 3.0])
@pytest.mark.parametrize("how", [calibrate, partial(calibrate_ratio, ratio=0.02)])
def test_a_monitor_recalibrates_after_a_drift(factor, how):
    monitor = Monitor(how([heavy_tailed(512, 96, seed=1)]), window=128, calibrate=how)
    before = monitor.saliency
    for seed in range(2, 12):
        monitor.mask(heavy_tailed(64, 96, seed) * factor)
    assert monitor.recalibrations >= 1
    assert monitor.saliency.reach == pytest.approx(before.reach * factor, rel=0.15)
    assert not monitor.drifted
    settled = monitor.recalibrations
    for seed in range(12, 24):
        monitor.mask(heavy_tailed(64, 96, seed) * factor)
    assert monitor.recalibrations == settled


def test_a_monitor_sees_all_tokens_of_a_large_call():
    quiet, loud = torch.randn(2, 600, 64, generator=torch.Generator().manual_seed(0))
    saliency = calibrate_ratio([quiet], 0.05)
    monitor = Monitor(saliency, window=100, calibrate=lambda some: calibrate_ratio(some, 0.05))
    found = monitor.mask(torch.cat((10 * loud, quiet)))
    assert monitor.recalibrations >= 2 and found.shape == (1200, 64)  # to the loud ones and back


def test_a_monitor_waits_for_a_full_window():
    monitor = Monitor(calibrate([heavy_tailed(512, 96)]), window=100)
    monitor.mask(heavy_tailed(99, 96) * 10)
    assert not monitor.drifted
    monitor.mask(heavy_tailed(1, 96) * 10)
    assert monitor.recalibrations == 1


def test_the_standard_error_knows_both_samples():
    monitor = Monitor(StaticSaliency(0, 1, ratio=0.02, spread=0.03, tokens=100), window=25)
    monitor.mask(torch.ones(3, 50))
    assert monitor.standard_error == pytest.approx(0.03 * (1 / 25 + 1 / 100) ** 0.5)
    even = Monitor(StaticSaliency(0, 1, tokens=100), window=25)  # all calibration tokens alike: one value of a token
    even.mask(torch.ones(3, 50))
    assert even.standard_error == pytest.approx(1 / 50 * (1 / 25 + 1 / 100) ** 0.5)


def test_spread_is_between_tokens_and_not_binomial():
    """Tokens with many salient values and tokens with none: the same ratio, a far larger standard error."""
    x = heavy_tailed(400, 100)
    x[::2] *= 0.1
    x[1::2] *= 4
    mixed = calibrate_ratio([x], 0.05)
    assert mixed.spread > 2 * (0.05 * 0.95 / 100) ** 0.5


@pytest.mark.parametrize(("window", "errors", "tokens"), [(0, 5.0, 9), (8, 0.0, 9), (8, float("nan"), 9), (8, 5.0, 0)])
def test_an_unusable_monitor_is_refused(window, errors, tokens):
    with pytest.raises(SpikeError, match="A monitor of"):
        Monitor(StaticSaliency(0, 1, tokens=tokens), window, errors)


def test_a_monitor_refuses_another_width_and_an_empty_window():
    monitor = Monitor(StaticSaliency(0, 1, tokens=9))
    with pytest.raises(SpikeError, match="0 tokens"):
        monitor.recalibrated()
    monitor.mask(torch.ones(2, 3))
    with pytest.raises(SpikeError, match="width 4 came to a monitor of width 3"):
        monitor.mask(torch.ones(2, 4))
