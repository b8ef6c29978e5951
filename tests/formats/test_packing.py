import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm import _native
from qslm.errors import FormatError
from qslm.formats.packing import pack, packed_bytes, unpack, unused_bits

WIDTHS = range(1, 17)
widths = st.sampled_from(WIDTHS)


def random_codes(count: int, bits: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 1 << bits, (count,), generator=generator, dtype=torch.int32)


def stream_by_definition(codes: torch.Tensor, bits: int) -> bytes:
    """Code i at bits [i * b, (i + 1) * b) of one little-endian number."""
    number = sum(int(code) << (i * bits) for i, code in enumerate(codes))
    return number.to_bytes(packed_bytes(len(codes), bits), "little")


@given(widths, st.integers(0, 300), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_packing_follows_its_definition_and_back(bits, count, seed):
    codes = random_codes(count, bits, seed)
    packed = pack(codes, bits)
    assert packed.numpy().tobytes() == stream_by_definition(codes, bits)
    assert torch.equal(unpack(packed, bits, count).int(), codes)
    assert count == 0 or unused_bits(packed, bits, count) == 0


@given(widths, st.binary(min_size=1, max_size=200), st.integers(0, 15))
@settings(max_examples=100, deadline=None)
def test_any_stream_unpacks_and_packs_to_itself(bits, data, less):
    count = max(0, len(data) * 8 // bits - less)
    data = data[: packed_bytes(count, bits)]
    stream = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())
    again = pack(unpack(stream, bits, count), bits)
    if count:
        again[-1] |= unused_bits(stream, bits, count) << (count * bits % 8)
    assert torch.equal(again, stream)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("shape", [(0, 3), (7, 11), (3, 5, 2), (1001, 13)])
def test_every_type_and_shape_packs_alike(bits, shape):
    codes = random_codes(int(np.prod(shape)), bits, seed=bits).reshape(shape)
    packed = pack(codes, bits)
    types = [torch.uint16, *([torch.uint8] if bits <= 8 else []), *([torch.int16] if bits < 16 else [])]
    for dtype in types:
        assert torch.equal(pack(codes.to(dtype), bits), packed)
    transposed = codes.transpose(0, -1)
    assert torch.equal(pack(transposed, bits), pack(transposed.contiguous(), bits))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("wrong", [-1, "one too many"])
def test_a_code_that_does_not_fit_is_refused(bits, wrong):
    codes = torch.zeros(37, dtype=torch.int32)
    codes[17] = -1 if wrong == -1 else 1 << bits
    with pytest.raises(FormatError, match=f"{bits} bits"):
        pack(codes, bits)


def test_floats_are_refused():
    with pytest.raises(FormatError, match="float32"):
        pack(torch.zeros(3), 4)


@pytest.mark.parametrize(("count", "length"), [(4, 1), (4, 3), (0, 1), (3, 0)])
def test_a_stream_of_wrong_length_is_refused(count, length):
    with pytest.raises(FormatError, match="4 bits"):
        unpack(torch.zeros(length, dtype=torch.uint8), 4, count)


def test_unused_bits_are_seen():
    assert unused_bits(torch.tensor([0b0100_0111], dtype=torch.uint8), 3, 2) == 1
    assert unused_bits(torch.tensor([255], dtype=torch.uint8), 4, 2) == 0


@pytest.mark.parametrize("bits", [0, 17, 33, 2**31])
def test_the_kernel_refuses_other_widths(bits):
    with pytest.raises(ValueError, match="bits is"):
        _native.pack(np.zeros(2, np.uint8), bits, np.zeros(2, np.uint8))
    with pytest.raises(ValueError, match="bits is"):
        _native.unpack(np.zeros(2, np.uint8), bits, np.zeros(2, np.uint16))


def test_the_kernel_refuses_wrong_buffers():
    with pytest.raises(ValueError, match="take 2 bytes"):
        _native.pack(np.zeros(4, np.uint8), 4, np.zeros(1, np.uint8))
    with pytest.raises(ValueError, match="take 2 bytes"):
        _native.unpack(np.zeros(3, np.uint8), 4, np.zeros(4, np.uint8))
    with pytest.raises(ValueError, match="not 1 to 8"):
        _native.unpack(np.zeros(9, np.uint8), 9, np.zeros(8, np.uint8))
    for codes in (np.zeros(4, np.float32), np.zeros((2, 2), np.uint8), np.zeros(8, np.uint8)[::2]):
        with pytest.raises(TypeError):
            _native.pack(codes, 4, np.zeros(2, np.uint8))
