"""WKV, the linear attention of RWKV: a weighted mean of past values whose weights decay per channel.

wkv_t = (sum_{i<t} e^{(t-1-i) w + k_i} v_i + e^{u + k_t} v_t) / (sum_{i<t} e^{(t-1-i) w + k_i} + e^{u + k_t})

Numerator p and denominator q are carried scaled by e^-o, o being the largest exponent seen, so nothing overflows.
The state has shape (batch, 3, channels), rows p, q, o. Facts: SpikeGPT, `src/model.py` and `cuda/wkv_cuda.cu`.
"""

import torch
from torch import Tensor

from qslm import _native

EMPTY_EXPONENT = -1e38


def empty_state(like: Tensor) -> Tensor:
    """The state (batch, 3, channels) before the first token of `like` (batch, tokens, channels)."""
    state = like.new_zeros(like.shape[0], 3, like.shape[2])
    state[:, 2] = EMPTY_EXPONENT
    return state


def wkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """wkv (batch, tokens, channels), and the state (batch, 3, channels) after the last token.

    `w` (channels) is the negative decay per token, `u` (channels) the bonus of the current token, `k` and `v`
    (batch, tokens, channels). On a CPU a fused kernel computes it, elsewhere plain PyTorch.
    """
    differentiated = torch.is_grad_enabled() and any(t.requires_grad for t in (w, u, k, v))
    fused = k.device.type == "cpu" and k.dtype in (torch.float32, torch.float64)
    if not fused or (differentiated and state is not None):
        return wkv_loop(w, u, k, v, state)
    if differentiated:
        y, last = FusedWKV.apply(w, u, k, v)
        return y, last
    return fused_wkv(w, u, k, v, state)


def wkv_loop(w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What `wkv` computes, token by token in PyTorch, on any device and with autograd."""
    p, q, o = (empty_state(k) if state is None else state).unbind(1)
    outputs = []
    for kt, vt in zip(k.unbind(1), v.unbind(1), strict=True):
        largest = torch.maximum(o, u + kt)
        a, b = torch.exp(o - largest), torch.exp(u + kt - largest)
        outputs.append((a * p + b * vt) / (a * q + b))
        largest = torch.maximum(w + o, kt)
        a, b = torch.exp(w + o - largest), torch.exp(kt - largest)
        p, q, o = a * p + b * vt, a * q + b, largest
    return torch.stack(outputs, 1), torch.stack((p, q, o), 1)


def fused_wkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What `wkv` computes, by the kernel: float32 or float64 on a CPU; no gradient."""
    k, v = k.detach().contiguous(), v.detach().contiguous()
    last = empty_state(k) if state is None else state.detach().clone()
    y = torch.empty_like(k)
    _native.wkv_forward(w.detach().contiguous(), u.detach().contiguous(), k, v, last, y, torch.get_num_threads())
    return y, last


class FusedWKV(torch.autograd.Function):
    """The WKV kernels, forward and backward, for windows that start from the empty state."""

    @staticmethod
    def forward(ctx, w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        """wkv (batch, tokens, channels) and the last state (batch, 3, channels)."""
        ctx.save_for_backward(w, u, k, v)
        y, last = fused_wkv(w, u, k, v)
        ctx.mark_non_differentiable(last)
        return y, last

    @staticmethod
    def backward(ctx, gradient: Tensor, _: Tensor) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
        """The gradients of w, u, k and v."""
        w, u, k, v = (tensor.contiguous() for tensor in ctx.saved_tensors)
        gw, gu = (k.new_empty(k.shape[0], k.shape[2]) for _ in range(2))
        gk, gv = torch.empty_like(k), torch.empty_like(v)
        _native.wkv_backward(w, u, k, v, gradient.contiguous(), gw, gu, gk, gv, torch.get_num_threads())
        return gw.sum(0), gu.sum(0), gk, gv
