"""Codes, scales and zero points in the order in which kernels read them; `native/packing/layout.h` defines it."""

import torch

from qslm import _native
from qslm.errors import FormatError
from qslm.formats.layout import packed_bytes

ROWS = 16  # of a tile


def pack_matrix(codes: torch.Tensor, bits: int, *, by_columns: bool = False) -> torch.Tensor:
    """Pack unsigned codes (rows, columns) uint8 of at most 8 bits into (bytes,) uint8, `packed_bytes` of them.

    by_columns: column after column, for inputs that are mostly zero. Raises FormatError when a code needs more bits.
    """
    matrix = codes.detach().cpu().contiguous()
    packed = torch.empty(packed_bytes(matrix.numel(), bits), dtype=torch.uint8)
    try:
        _native.pack_matrix(matrix.numpy(), bits, by_columns, packed.numpy())
    except ValueError as error:
        raise FormatError(f"Codes cannot be packed: {error}.", f"Give codes from 0 to {2**bits - 1:,}.") from error
    return packed


def unpack_matrix(packed: torch.Tensor, bits: int, shape: tuple[int, int], *, by_columns: bool = False) -> torch.Tensor:
    """The inverse of `pack_matrix`: codes of `shape` (rows, columns), uint8."""
    codes = torch.empty(shape, dtype=torch.uint8)
    _native.unpack_matrix(packed.cpu().contiguous().numpy(), bits, by_columns, codes.numpy())
    return codes


def tiled(grid: torch.Tensor) -> torch.Tensor:
    """Scales or zero points (rows, groups) as they are stored, (rows * groups,): by tiles, groups, rows.

    (20, 3) -> the 16 scales of the first group of rows 0 to 15, those of the second, ..., then 4 by 4 of rows 16 to 19.
    """
    whole = grid.shape[0] // ROWS * ROWS
    tiles = grid[:whole].reshape(-1, ROWS, grid.shape[1]).transpose(1, 2)
    return torch.cat((tiles.reshape(-1), grid[whole:].T.reshape(-1)))


def untiled(stored: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """The inverse of `tiled`: (rows, groups) of `shape`."""
    rows, groups = shape
    whole = rows // ROWS * ROWS
    tiles = stored[: whole * groups].reshape(-1, groups, ROWS).transpose(1, 2)
    return torch.cat((tiles.reshape(whole, groups), stored[whole * groups :].reshape(groups, rows - whole).T))
