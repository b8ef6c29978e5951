"""Codes of 1 to 16 bits as a bit stream without gaps, by the C kernels of `native/packing/packing.c`.

Code i occupies bits [i * b, (i + 1) * b) of the stream, least significant bit first; only the last byte may
have unused bits, and they are zero.
"""

import numpy as np
import torch

from qslm import _native
from qslm.errors import FormatError
from qslm.formats.layout import packed_bytes

_UNSIGNED = {torch.uint8: np.uint8, torch.int16: np.uint16, torch.uint16: np.uint16, torch.int32: np.uint32}


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack unsigned codes (any shape; uint8, int16, uint16 or int32) into a stream (bytes,) uint8 on the CPU.

    Raises FormatError when a code is negative or needs more than `bits` bits.
    """
    if codes.dtype not in _UNSIGNED:
        raise FormatError(f"Codes of type {codes.dtype} cannot be packed.", "Convert them to uint8, uint16 or int32.")
    flat = codes.detach().cpu().contiguous().reshape(-1)
    packed = torch.empty(packed_bytes(flat.numel(), bits), dtype=torch.uint8)
    try:
        _native.pack(flat.numpy().view(_UNSIGNED[codes.dtype]), bits, packed.numpy())
    except ValueError as error:
        raise FormatError(f"Codes cannot be packed: {error}.", f"Give codes from 0 to {2**bits - 1:,}.") from error
    return packed


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Read `count` codes (count,) out of a stream (bytes,) uint8.

    They are uint8 up to 8 bits, int16 up to 15 bits and int32 for 16. Raises FormatError when the length of
    the stream is not what the codes take.
    """
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() != packed_bytes(count, bits):
        raise FormatError(
            f"{count} codes of {bits} bits take {packed_bytes(count, bits)} bytes, "
            f"not a {packed.dtype} tensor of shape {tuple(packed.shape)}.",
            "The file is damaged or was written for another shape: write it again or fetch it again.",
        )
    dtype = torch.uint8 if bits <= 8 else torch.int16 if bits < 16 else torch.int32
    codes = torch.empty(count, dtype=dtype)
    _native.unpack(packed.cpu().contiguous().numpy(), bits, codes.numpy().view(_UNSIGNED[dtype]))
    return codes


def unused_bits(packed: torch.Tensor, bits: int, count: int) -> int:
    """The value of the unused bits of the last byte; a valid stream has 0."""
    used = count * bits % 8
    return int(packed[-1]) >> used if used else 0
