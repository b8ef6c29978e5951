import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm.errors import SpikeError
from qslm.spiking import (
    Encoding,
    SpikeCounts,
    encode,
    from_integers,
    from_stored,
    normal_step,
    salient,
    static_step,
    stored,
    stored_bytes,
)
from qslm.spiking.encoding import MOST_EXPONENT

FIELDS = ("counts", "salient", "massive", "exponents", "step")
encodings = st.tuples(st.integers(2, 8), st.integers(2, 8)).map(lambda b: Encoding(min(b), max(b)))


def spread_out(tokens: int, width: int, seed: int) -> torch.Tensor:
    """Activations over many magnitudes, some zero: all three populations occur."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=generator)
    x *= 10 ** (torch.rand(tokens, width, generator=generator) * 6 - 3) ** 2
    return x * (torch.rand(tokens, width, generator=generator) > 0.2)


def assert_same(found: SpikeCounts, expected: SpikeCounts) -> None:
    assert found.encoding == expected.encoding
    for field in FIELDS:
        one, other = getattr(found, field), getattr(expected, field)
        assert one.dtype == other.dtype
        assert torch.equal(one, other), field


@given(encodings, st.integers(1, 6), st.integers(1, 40), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_the_three_populations(encoding, tokens, width, seed):
    x = spread_out(tokens, width, seed)
    found = encode(x, encoding)
    assert torch.equal(found.salient, salient(x))
    assert not (found.massive & ~found.salient).any()
    magnitudes = found.counts.short().abs()
    assert (magnitudes[~found.salient] <= encoding.most).all()
    assert (magnitudes <= encoding.most_salient).all()
    assert torch.equal(found.exponents > 0, found.massive.any(1, keepdim=True))
    # No value is farther off than half a step of its grid, so nothing salient is clipped.
    grid = found.step.double() * 2 ** (found.exponents * found.massive).double()
    off = (found.values().double() - x.double()).abs()
    assert (off <= grid * (0.5 + 1e-4)).all()
    assert torch.equal(found.values(), (found.integers().double() * found.step.double()).float())
    assert torch.equal(found.integers() == found.counts, ~found.massive | (found.counts == 0))


@given(encodings, st.integers(1, 6), st.integers(1, 30), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_the_exponent_is_the_least(encoding, tokens, width, seed):
    x = spread_out(tokens, width, seed)
    found = encode(x, encoding)
    for token in found.massive.any(1).nonzero().flatten().tolist():
        largest = x[token][found.massive[token]].abs().max() / found.step[token, 0]
        e = int(found.exponents[token])
        assert (largest * 2.0**-e).round() <= encoding.most_salient < (largest * 2.0 ** -(e - 1)).round()


def test_a_worked_token():
    """Step 1 from the normal 7; 100 is on the same grid; a grid of 4 steps holds up to 509.9, and not 510.1."""
    x = torch.tensor([[7.0, -2.6, 0.4, 100.0, -508.0, 509.9, 510.1]])
    mask = torch.tensor([[False, False, False, True, True, True, False]])
    found = encode(x[:, :6], Encoding(), mask[:, :6])
    assert found.step.item() == 1
    assert found.counts.tolist() == [[7, -3, 0, 100, -127, 127]]
    assert (found.exponents.item(), found.massive.tolist()) == (2, [[False, False, False, False, True, True]])
    assert found.integers().tolist() == [[7, -3, 0, 100, -508, 508]]
    assert encode(x, Encoding(), mask | (x > 510), 1.0).exponents.item() == 3  # 510.1 / 4 rounds to 128


@pytest.mark.parametrize(
    ("steps", "count", "exponent"),
    [(127.25, 127, 0), (127.5, 64, 1), (254.75, 127, 1), (255.0, 64, 2), (2.0**30, 64, 24)],
)
def test_half_a_step_beyond_a_grid_needs_the_next(steps, count, exponent):
    """127.5 rounds to 128, which is even: more than 8 bits hold."""
    found = encode(torch.tensor([[steps]]), Encoding(), torch.tensor([[True]]), 1.0)
    assert (found.counts.item(), found.exponents.item()) == (count, exponent)
    assert found.massive.item() == (exponent > 0)


def test_steps():
    encoding = Encoding(clip=0.9)
    x = torch.tensor([[1.0, -3.5, 40.0], [0.0, 0.0, 0.0], [0.0, 0.0, 40.0]])
    mask = x == 40
    steps = torch.tensor([[3.5]]) * 0.9 / 7, torch.tensor([[1.0]]), torch.tensor([[40.0]]) / 127
    assert torch.equal(normal_step(x, mask, encoding), torch.cat(steps))
    clipped = encode(x, encoding, mask)
    assert clipped.counts.tolist() == [[2, -7, 89], [0, 0, 0], [0, 0, 127]]
    assert encode(x, encoding, mask, step=0.5).counts.tolist() == [[2, -7, 80], [0, 0, 0], [0, 0, 80]]


@pytest.mark.parametrize(
    "token", [[1e-30, 1e38], [1e-45, 3e38], [1e-45, 2e-45], [3.4e38, 3.4e38], [1e-38, 1.0], [-3.4e38, 1e30]]
)
def test_extremes_are_held(token):
    x = torch.tensor([token])
    found = encode(x, Encoding(), torch.tensor([[False, True]]))
    assert 0 <= found.exponents.item() <= MOST_EXPONENT
    grid = found.step.double() * 2.0 ** found.exponents.item()
    assert torch.isfinite(found.values()).all()
    assert ((found.values().double() - x.double()).abs() <= grid).all()


def test_a_static_step_is_the_quantile_of_the_steps():
    samples = [spread_out(9, 20, seed) for seed in range(3)] + [torch.zeros(5, 20)]
    encoding = Encoding()
    steps = torch.cat([normal_step(s, salient(s), encoding) for s in samples[:3]]).flatten().sort().values
    assert static_step(samples, encoding, quantile=0) == steps[0]
    assert static_step(samples, encoding, quantile=1) == steps[-1]
    assert static_step(samples, encoding) == steps[13]
    for unusable, quantile in (([], 0.5), ([torch.zeros(2, 3)], 0.5), (samples, 1.5)):
        with pytest.raises(SpikeError, match="No step can be calibrated"):
            static_step(unusable, encoding, quantile=quantile)


@given(encodings, st.lists(st.lists(st.integers(-(2**30), 2**30), min_size=5, max_size=5), min_size=1, max_size=5))
@settings(max_examples=200, deadline=None)
def test_integers_become_counts(encoding, tokens):
    integers = torch.tensor(tokens) % (encoding.most_salient << 23)
    found = from_integers(integers, 0.5, encoding)
    assert torch.equal(found.salient, integers.abs() > encoding.most)
    assert torch.equal(found.massive, integers.abs() > encoding.most_salient)
    assert torch.equal(found.exponents > 0, found.massive.any(1, keepdim=True))
    held = found.integers().long()
    assert torch.equal(held[~found.massive], integers[~found.massive])
    assert ((held - integers).abs() * 2 <= (1 << (found.exponents.long() * found.massive))).all()
    assert (found.step == 0.5).all()


def test_massive_ties_go_away_from_zero():
    found = from_integers(torch.tensor([[253, 250, -250, 246, 3]]), 1.0, Encoding())
    assert found.counts.tolist() == [[127, 125, -125, 123, 3]]
    found = from_integers(torch.tensor([[251, -251, 249, 7]]), 1.0, Encoding())
    assert found.integers().tolist() == [[252, -252, 250, 7]]


@given(encodings, st.integers(0, 5), st.integers(1, 33), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_storing_is_exact_and_takes_the_foretold_bytes(encoding, tokens, width, seed):
    counts = encode(spread_out(tokens, width, seed), encoding)
    tensors = stored(counts)
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == stored_bytes(counts)
    assert_same(from_stored(tensors, encoding, width), counts)


def read_like_c(raw: dict[str, bytes], bits: int, tokens: int, width: int) -> list[list[float]]:
    """The values, read from bytes alone as the docstring of `stored` says."""
    stream = int.from_bytes(raw["codes"], "little")
    rows, heights = (struct.unpack(f"<{tokens + 1}i", raw[name]) for name in ("rows", "heights"))
    listed, massive = (struct.unpack(f"<{len(raw[name])}b", raw[name]) for name in ("counts", "massive"))
    steps = struct.unpack(f"<{tokens}f", raw["step"])
    exponents = struct.unpack(f"<{tokens}b", raw["exponent"])
    values = []
    for n in range(tokens):
        codes = [(stream >> ((n * width + j) * bits)) % (1 << bits) for j in range(width)]
        token = [(code - (1 << (bits - 1))) * steps[n] for code in codes]
        escaped = [j for j, code in enumerate(codes) if code == 0]
        high = iter(massive[heights[n] : heights[n + 1]])
        for j, count in zip(escaped, listed[rows[n] : rows[n + 1]], strict=True):
            token[j] = (next(high) << exponents[n] if count == -128 else count) * steps[n]
        assert next(high, None) is None
        values.append(token)
    return values


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("width", [1, 7, 64])
def test_the_stored_bytes_are_as_documented(bits, width):
    counts = encode(spread_out(5, width, seed=bits), Encoding(bits))
    raw = {name: tensor.numpy().tobytes() for name, tensor in stored(counts).items()}
    found = torch.tensor(read_like_c(raw, bits, 5, width), dtype=torch.float64)
    assert torch.equal(found.float(), counts.values())


def test_stored_size_at_the_ratio_of_the_paper():
    """4 + 8 (r + m) + 104 / width bits a value: 4.4 at 2.5 % and a width of 576."""
    x = torch.randn(256, 576, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(256, 576, dtype=torch.bool)
    mask[:, ::40] = True
    counts = encode(x, Encoding(), mask)
    expected = 4 + 8 * (counts.ratio + float(counts.massive.float().mean())) + 104 / 576
    assert stored_bytes(counts) * 8 / x.numel() == pytest.approx(expected, abs=1e-3)
    assert expected == pytest.approx(4.38, abs=0.01)


def damaged(name: str, change) -> dict[str, torch.Tensor]:
    x = torch.tensor([[1.0, 2.0, -1.5, 60.0, 4000.0], [1.0, 2.0, 0.5, -30.0, 1.5]])
    tensors = stored(encode(x, Encoding(), x.abs() > 10))
    tensors[name] = change(tensors[name].clone())
    return tensors


def put(index: int, value: int):
    def change(tensor: torch.Tensor) -> torch.Tensor:
        wide = tensor.to(torch.float64)
        wide[index] = value
        return wide.to(tensor.dtype)

    return change


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("codes", lambda t: t[:-1], "take 5 bytes"),
        ("codes", put(0, 0), "3 numbers for 5 escapes"),
        ("codes", lambda t: t.to(torch.int8), "torch.int8"),
        ("rows", put(1, 9), "where the tokens' escapes begin"),
        ("rows", put(0, 1), "where the tokens' escapes begin"),
        ("rows", lambda t: t[:-1], "where the tokens' escapes begin"),
        ("heights", put(1, 1), "where massive values begin"),
        ("heights", lambda t: t[:-1], "where massive values begin"),
        ("counts", lambda t: t[:-1], "2 numbers for 3 escapes"),
        ("counts", put(2, -128), "2 numbers for 3 escapes"),
        ("massive", put(0, -128), "beyond the encoding"),
        ("exponent", put(0, 0), "just where values are massive"),
        ("exponent", put(1, 3), "just where values are massive"),
        ("exponent", put(0, 25), "within 0 to 24"),
        ("exponent", lambda t: t[:1], "1 numbers for 2 tokens"),
        ("step", put(0, 0), "positive and finite"),
        ("step", put(0, float("nan")), "positive and finite"),
        ("step", lambda t: t[:, None], r"\[2, 1\]"),
    ],
)
def test_damage_is_refused_by_name(name, change, told):
    with pytest.raises(SpikeError, match=told) as caught:
        from_stored(damaged(name, change), Encoding(), 5)
    assert "store" in caught.value.remedy


def test_a_missing_tensor_and_unused_bits_are_refused():
    tensors = stored(encode(torch.ones(1, 3), Encoding()))
    missing = {name: tensor for name, tensor in tensors.items() if name != "rows"}
    with pytest.raises(SpikeError, match="'rows': it is missing"):
        from_stored(missing, Encoding(), 3)
    tensors["codes"][-1] |= 0x80
    with pytest.raises(SpikeError, match="unused bits"):
        from_stored(tensors, Encoding(), 3)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_changed_byte_is_refused_or_means_something_else(data):
    """No change of a byte leads to another error, or goes unseen."""
    encoding, width = Encoding(3, 6), 6
    counts = encode(spread_out(3, width, seed=data.draw(st.integers(0, 50))), encoding)
    tensors = stored(counts)
    name = data.draw(st.sampled_from([n for n, t in tensors.items() if t.numel()]))
    raw = bytearray(tensors[name].numpy().tobytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    tensors[name] = torch.frombuffer(raw, dtype=tensors[name].dtype)
    try:
        found = from_stored(tensors, encoding, width)
    except SpikeError:
        return
    assert any(not torch.equal(getattr(found, field), getattr(counts, field)) for field in FIELDS)


@pytest.mark.parametrize(
    "bits", [(1, 8, 1.0), (5, 4, 1.0), (4, 9, 1.0), (4, 8, 0.0), (4, 8, 1.1), (4, 8, float("nan"))]
)
def test_unusable_encodings_are_refused(bits):
    with pytest.raises(SpikeError, match="No encoding has"):
        Encoding(*bits)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((torch.ones(3),), r"not of shape \(3,\)"),
        ((torch.ones(2, 3, 4),), r"not of shape \(2, 3, 4\)"),
        ((torch.tensor([[1.0, float("nan")]]),), "NaN"),
        ((torch.ones(2, 0),), r"\(2, 0\)"),
        ((torch.ones(2, 3), torch.ones(2, 3)), "mask"),
        ((torch.ones(2, 3), torch.ones(2, 2, dtype=torch.bool)), "mask"),
        ((torch.ones(2, 3), None, 0.0), "A step of 0"),
        ((torch.ones(2, 3), None, float("inf")), "A step of inf"),
        ((torch.ones(2, 3), None, torch.ones(2)), r"shape \(2,\)"),
        ((torch.ones(1, 1) * 1e9, torch.ones(1, 1, dtype=torch.bool), 1e-3), "steps"),
        ((torch.ones(1, 1) * 1e38, torch.ones(1, 1, dtype=torch.bool), 1e-30), "inf steps"),
    ],
)
def test_unusable_inputs_are_refused_by_name(arguments, told):
    x, *rest = arguments
    with pytest.raises(SpikeError, match=told):
        encode(x, Encoding(), *rest)


def test_unusable_integers_are_refused():
    for integers, told in (
        (torch.ones(2, 2, dtype=torch.int32), "int32"),
        (torch.ones(2, dtype=torch.int64), r"\(2,\)"),
        (torch.full((1, 1), 128 << 24), "steps"),
    ):
        with pytest.raises(SpikeError, match=told):
            from_integers(integers, 1.0, Encoding())


def test_no_tokens_are_no_failure():
    counts = encode(torch.empty(0, 5), Encoding())
    assert counts.integers().shape == counts.values().shape == (0, 5)
    assert (counts.ratio, counts.has_massive, stored_bytes(counts)) == (0, False, 8)


def test_a_part_is_encoded_alike():
    counts = encode(spread_out(9, 12, 3), Encoding())
    assert_same(counts.part(slice(2, 7)), encode(spread_out(9, 12, 3)[2:7], Encoding()))
