import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm.errors import SpikeError
from qslm.spiking import (
    BIT_PLANES,
    FIRST_SPIKE,
    RATE,
    THERMOMETER,
    Cost,
    Encoding,
    SpikeCounts,
    Windows,
    encode,
)

CODES = {"rate": RATE, "thermometer": THERMOMETER, "bit planes": BIT_PLANES, "first spike": FIRST_SPIKE}
codes = st.sampled_from(list(CODES.values()))
integers = st.integers(1, 130).flatmap(
    lambda most: st.tuples(
        st.just(most), st.lists(st.lists(st.integers(-most, most), min_size=4, max_size=4), min_size=1, max_size=4)
    )
)


def random_counts(tokens: int, width: int, seed: int, encoding: Encoding | None = None) -> SpikeCounts:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=generator)
    x *= 10 ** (3 * torch.rand(tokens, width, generator=generator) ** 6)
    return encode(x, encoding or Encoding())


@given(codes, integers)
@settings(max_examples=200, deadline=None)
def test_every_code_is_inverted_and_costs_what_it_says(code, drawn):
    most, values = drawn
    counts = torch.tensor(values)
    steps = code.steps(most)
    spikes = code.spikes(counts, steps)
    assert spikes.shape == (steps, *counts.shape)
    assert set(spikes.unique().tolist()) <= {-1, 0, 1}
    assert torch.equal(code.inverse(spikes), counts)
    cost = code.cost(counts, steps)
    assert cost.spikes == cost.accumulates == int(spikes.abs().sum())
    assert cost.steps == steps * len(counts)


@given(codes, integers, st.integers(0, 20))
@settings(max_examples=100, deadline=None)
def test_a_longer_window_holds_the_same(code, drawn, more):
    most, values = drawn
    counts, steps = torch.tensor(values), code.steps(most) + min(more, 8)
    assert torch.equal(code.inverse(code.spikes(counts, steps)), counts)


@given(codes, integers, st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_weighted_sums_need_additions_alone(code, drawn, seed):
    """The increments of the currents sum up to W q: what the decoding is for."""
    most, values = drawn
    counts = torch.tensor(values)
    weights = torch.randint(-8, 8, (5, 4), generator=torch.Generator().manual_seed(seed))
    currents = code.spikes(counts, code.steps(most)).long() @ weights.T
    assert torch.equal(code.increments(currents).sum(0), counts @ weights.T)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (RATE, [[0, 0, 1, 0, 1, 0, 1], [0, 0, 0, 0, 0, 0, -1], [1] * 7, [0] * 7]),
        (THERMOMETER, [[1, 1, 1, 0, 0, 0, 0], [-1, 0, 0, 0, 0, 0, 0], [1] * 7, [0] * 7]),
        (BIT_PLANES, [[1, 1, 0], [-1, 0, 0], [1, 1, 1], [0, 0, 0]]),
        (FIRST_SPIKE, [[0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0, -1], [1, 0, 0, 0, 0, 0, 0], [0] * 7]),
    ],
)
def test_worked_trains(code, expected):
    """The trains of 3, -1, 7 and 0 in a window for 7."""
    spikes = code.spikes(torch.tensor([[3, -1, 7, 0]]), code.steps(7))
    assert spikes[:, 0].T.tolist() == expected


def test_worked_costs():
    """Two tokens in windows for 7: counts 11 and 8, bits 6 and 2, non-zeros 3 and 2."""
    counts = torch.tensor([[3, -1, 7, 0], [4, 0, 0, -4]])
    assert RATE.cost(counts, 7) == Cost(spikes=19, accumulates=19, additions=0, steps=14)
    assert THERMOMETER.cost(counts, 7) == RATE.cost(counts, 7)
    assert BIT_PLANES.cost(counts, 3) == Cost(spikes=8, accumulates=8, additions=6, steps=6)
    assert FIRST_SPIKE.cost(counts, 7) == Cost(spikes=5, accumulates=5, additions=14, steps=14)


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
@pytest.mark.parametrize("most", [1, 7, 127])
def test_a_short_window_is_refused(code, most):
    steps = code.steps(most)
    counts = torch.tensor([[0, -most]])
    for act in (code.spikes, code.cost):
        act(counts, steps)
        with pytest.raises(SpikeError, match=f"A count of {most} takes {steps} time steps"):
            act(counts, steps - 1)


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
@pytest.mark.parametrize("shape", [(0, 3), (2, 3)])
def test_silence(code, shape):
    counts = torch.zeros(shape, dtype=torch.int64)
    spikes = code.spikes(counts, code.steps(0))
    assert spikes.shape == (1, *shape)
    assert not spikes.any()
    assert code.cost(counts, 1).spikes == 0


@given(codes, codes, codes, st.integers(1, 4), st.integers(1, 12), st.integers(0, 2**32), st.sampled_from([2, 4, 6]))
@settings(max_examples=100, deadline=None)
def test_windows_carry_all_populations(normal, salient, massive, tokens, width, seed, bits):
    counts = random_counts(tokens, width, seed, Encoding(bits, 6))
    windows = Windows(normal, salient, massive)
    trains = windows.trains(counts)
    assert torch.equal(sum(train.integers() for train in trains), counts.integers().long())
    cost = windows.cost(counts)
    assert cost.spikes == sum(int(train.spikes.abs().sum()) for train in trains)
    assert cost.steps <= tokens * sum(len(train.spikes) for train in trains)


def test_all_populations_occur():
    counts = random_counts(16, 64, 0)
    assert len(Windows().trains(counts)) == 3


def test_a_token_without_salient_values_spends_no_time_on_them():
    counts = encode(
        torch.tensor([[7.0, 1.0, 2.0], [7.0, 1.0, 90.0], [7.0, 9000.0, 90.0]]),
        Encoding(),
        torch.tensor([[False] * 3, [False, False, True], [False, True, True]]),
    )
    cost = Windows(BIT_PLANES, FIRST_SPIKE, FIRST_SPIKE).cost(counts)
    assert cost.steps == 3 * 3 + 2 * 127 + 1 * 127
    assert cost.additions == cost.steps
    assert cost.spikes == (3 + 1 + 1) + (3 + 1) + 3 + (1 + 1) + 1
    quiet = encode(torch.ones(4, 3), Encoding())
    assert len(Windows().trains(quiet)) == 1
    assert Windows(RATE).cost(quiet).steps == 4 * 7


def test_first_spikes_are_fewest_and_mean_more_steps():
    """512 inputs in 127 steps: counts make the most spikes, then bit planes, then first spikes."""
    integers = random_counts(1, 512, 1).counts.int()
    rate, bits, first = (code.cost(integers, code.steps(127)) for code in (RATE, BIT_PLANES, FIRST_SPIKE))
    assert rate.accumulates > bits.accumulates > first.accumulates
    assert first.accumulates == int((integers != 0).sum())
    assert first.additions == 127
