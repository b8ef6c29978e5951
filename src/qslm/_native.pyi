"""Types of the compiled kernels; arrays are contiguous and on the CPU, those of one call of one float type."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

def keep_freed_memory() -> None: ...
def return_freed_memory(least: int) -> bool: ...
def wkv_forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor, y: Tensor, threads: int) -> None: ...
def wkv_backward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, gy: Tensor, gw: Tensor, gu: Tensor, gk: Tensor, gv: Tensor, threads: int
) -> None: ...
def lif_forward(
    x: Tensor, forced: Tensor | None, v: Tensor, spikes: Tensor, h: Tensor | None, threads: int
) -> None: ...
def lif_backward(x: Tensor, gspikes: Tensor, alpha: float, gx: Tensor, threads: int) -> None: ...
def pack(codes: NDArray[Any], bits: int, packed: NDArray[Any]) -> None: ...
def unpack(packed: NDArray[Any], bits: int, codes: NDArray[Any]) -> None: ...
def gptq(
    weight: Tensor,
    factor: Tensor,
    scales: Tensor,
    zeros: Tensor,
    group: Tensor,
    lowest: int,
    highest: int,
    codes: Tensor,
    threads: int,
) -> None: ...

class Tokenizer:
    """Byte-level BPE out of the bytes of a tokenizer.json. Raises ValueError, with the reason, where it refuses one."""

    def __init__(self, json: bytes) -> None: ...
    @property
    def arena_bytes(self) -> int:
        """Of memory that the loaded tokenizer takes."""
    def __len__(self) -> int: ...
    def encode(self, text: bytes) -> NDArray[np.uint32]:
        """Ids `(tokens,)` of UTF-8 text; added tokens are found in it. Raises ValueError on bytes that are no UTF-8."""
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> bytes:
        """The bytes of tokens; an id without a token raises ValueError."""
    def find(self, name: str) -> int | None:
        """The id of the token of this name in the file."""
