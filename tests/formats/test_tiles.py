import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm import _native
from qslm.errors import FormatError
from qslm.formats.layout import packed_bytes
from qslm.formats.packing import pack
from qslm.formats.tiles import pack_matrix, tiled, unpack_matrix, untiled

bits_of_codes = st.integers(1, 8)
sizes = st.integers(1, 70) | st.integers(100, 290)


def random_codes(rows: int, columns: int, bits: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 1 << bits, (rows, columns), generator=generator, dtype=torch.uint8)


def by_definition(codes: np.ndarray, bits: int, by_columns: bool) -> bytes:
    """What `native/packing/layout.h` says, with arrays: blocks, planes, vectors, slices, the stream of the rest."""
    rows, columns = codes.shape
    if by_columns:
        whole = rows // 128 * 128
        blocks = codes[:whole].T.reshape(columns, -1, 128).reshape(-1, 128)
        rest = codes[whole:].T.reshape(-1)
    else:
        down, across = rows // 16, columns // 32
        tiles = codes[: 16 * down, : 32 * across].reshape(down, 16, across, 8, 4)
        blocks = tiles.transpose(0, 2, 3, 1, 4).reshape(-1, 512)
        rest = np.concatenate([codes[: 16 * down, 32 * across :].reshape(-1), codes[16 * down :].reshape(-1)])
    parts = []
    for block in blocks:
        low = 0
        for plane in (8, 4, 2, 1):
            if bits & plane:
                part = block.astype(np.uint16) >> low & ((1 << plane) - 1)
                slices = part.reshape(-1, 8 // plane, 16 * plane if by_columns else 64)
                shifts = np.arange(0, 8, plane, dtype=np.uint16)[:, None]
                parts.append((slices << shifts).sum(1).astype(np.uint8).tobytes())
                low += plane
    return b"".join(parts) + pack(torch.from_numpy(rest.copy()), bits).numpy().tobytes()


@given(sizes, sizes, bits_of_codes, st.booleans(), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_codes_lie_as_defined_and_come_back(rows, columns, bits, by_columns, seed):
    codes = random_codes(rows, columns, bits, seed)
    packed = pack_matrix(codes, bits, by_columns=by_columns)
    assert packed.numel() == packed_bytes(codes.numel(), bits)
    assert packed.numpy().tobytes() == by_definition(codes.numpy(), bits, by_columns)
    assert torch.equal(unpack_matrix(packed, bits, (rows, columns), by_columns=by_columns), codes)


@given(sizes, st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_scales_lie_by_tiles_groups_and_rows(rows, groups):
    grid = torch.arange(rows * groups).reshape(rows, groups)
    expected = [
        grid[row, group]
        for tile in range(0, rows, 16)
        for group in range(groups)
        for row in range(tile, min(tile + 16, rows))
    ]
    assert tiled(grid).tolist() == [int(one) for one in expected]
    assert torch.equal(untiled(tiled(grid), (rows, groups)), grid)


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("place", [(0, 0), (130, 40)])
def test_a_code_that_is_too_wide_is_refused(place, by_columns):
    codes = torch.zeros(131, 41, dtype=torch.uint8)
    codes[place] = 8
    with pytest.raises(FormatError, match="more than 3 bits"):
        pack_matrix(codes, 3, by_columns=by_columns)


def test_buffers_of_another_size_are_refused():
    codes, packed = np.zeros((16, 32), np.uint8), np.zeros(255, np.uint8)
    for call in (
        lambda: _native.pack_matrix(codes, 4, False, packed),
        lambda: _native.unpack_matrix(packed, 4, False, codes),
    ):
        with pytest.raises(ValueError, match="take 256 bytes"):
            call()
    with pytest.raises(ValueError, match="not 1 to 8"):
        _native.pack_matrix(codes, 9, False, np.zeros(576, np.uint8))
