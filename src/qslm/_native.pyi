"""Types of the compiled kernels; arrays are contiguous and on the CPU, those of one call of one float type."""

from typing import Any

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
