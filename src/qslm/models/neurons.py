"""Spiking neurons along the token axis: leaky integrate-and-fire (LIF) and integrate-and-fire (IF).

A neuron turns currents `x` of shape (batch, tokens, channels) into spikes {0, 1} of the same shape, one time step a
token. Its membrane potential after reset, `v` of shape (batch, channels), is the state that recurrent use carries.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qslm import _native

THRESHOLD = 1.0


@dataclass(eq=False)
class SpikeTrace:
    """What neurons did in one forward pass, in the order in which they ran.

    `potentials` and `spikes` hold one (batch, tokens, channels) tensor a neuron. Where `forced` is given, the neurons
    emit its spikes instead of their own, so that two computations can be compared beyond a discontinuity.
    """

    potentials: list[Tensor] = field(default_factory=list)
    spikes: list[Tensor] = field(default_factory=list)
    forced: list[Tensor] | None = None

    def next_forced(self) -> Tensor | None:
        """The spikes that the neuron now running must emit, or None."""
        return None if self.forced is None else self.forced[len(self.spikes)]


class ArctangentSpike(torch.autograd.Function):
    """Heaviside step with the arctangent surrogate gradient.

    s = [x >= 0];  ds/dx := (alpha / 2) / (1 + (pi / 2 * alpha * x)^2)  (Fang et al. 2021, as in SpikeGPT, alpha = 2)
    """

    @staticmethod
    def forward(ctx, x: Tensor, alpha: float) -> Tensor:  # type: ignore[no-untyped-def]
        """The spikes of x, any shape."""
        ctx.save_for_backward(x)
        ctx.alpha = alpha
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        """The gradient of x."""
        (x,) = ctx.saved_tensors
        return gradient * (0.5 * ctx.alpha) / (1 + (0.5 * math.pi * ctx.alpha * x) ** 2), None


def heaviside(x: Tensor, alpha: float = 2.0) -> Tensor:
    """[x >= 0] with the arctangent surrogate gradient; -0.0 fires."""
    spikes: Tensor = ArctangentSpike.apply(x, alpha)
    return spikes


class HardReset(torch.autograd.Function):
    """v = 0 where there is a spike, else h; differentiated as the equal h * (1 - s).

    The product itself would make NaN of an infinite potential: inf * 0. Nor does such a potential pull at the spike:
    dv/ds = -h meets ds/dh, which falls as 1 / h^2, so their product is 0 in the limit.
    """

    @staticmethod
    def forward(ctx, h: Tensor, spike: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        """The potential after the reset, any shape."""
        ctx.save_for_backward(h, spike)
        return torch.where(spike != 0, torch.zeros_like(h), h)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        """The gradients of h and of the spike."""
        h, spike = ctx.saved_tensors
        return gradient * (1 - spike), -(gradient * h.masked_fill(h.isinf(), 0))


class Neuron(nn.Module, ABC):
    """A spiking neuron with threshold 1; a subclass says how current charges the membrane and how a spike resets it."""

    def __init__(self, alpha: float = 2.0) -> None:
        super().__init__()
        self.alpha = alpha

    @abstractmethod
    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        """The potential h before the reset, from the potential v after the last one; (batch, channels)."""

    @abstractmethod
    def reset(self, h: Tensor, spike: Tensor) -> Tensor:
        """The potential v after the reset; (batch, channels)."""

    def forward(self, x: Tensor, v: Tensor | None = None, trace: SpikeTrace | None = None) -> tuple[Tensor, Tensor]:
        """The spikes of x (batch, tokens, channels), and the membrane potential (batch, channels) after them."""
        forced = None if trace is None else trace.next_forced()
        v = torch.zeros_like(x[:, 0]) if v is None else v
        potentials, spikes = [], []
        for t, current in enumerate(x.unbind(1)):
            h = self.charge(v, current)
            spike = heaviside(h - THRESHOLD, self.alpha) if forced is None else forced[:, t]
            v = self.reset(h, spike)
            potentials.append(h)
            spikes.append(spike)
        out = torch.stack(spikes, 1)
        if trace is not None:
            trace.potentials.append(torch.stack(potentials, 1))
            trace.spikes.append(out)
        return out, v

    def potentials(self, x: Tensor, spikes: Tensor) -> Tensor:
        """The potentials h before the reset where these spikes reset the membrane; all (batch, tokens, channels).

        Differentiable in x, and without a discontinuity: so potentials are held against those of other currents.
        """
        trace = SpikeTrace(forced=[spikes])
        Neuron.forward(self, x, None, trace)
        return trace.potentials[0]


class IF(Neuron):
    """Integrate-and-fire with soft reset: h_t = v + x_t;  s_t = [h_t >= 1];  v = h_t - s_t."""

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        """v + x."""
        return v + x

    def reset(self, h: Tensor, spike: Tensor) -> Tensor:
        """h - spike."""
        return h - spike


class LIF(Neuron):
    """Leaky integrate-and-fire, tau = 2, decaying input, hard reset to 0 (SpikeGPT).

    h_t = v + (x_t - v) / 2;  s_t = [h_t >= 1];  v = 0 if s_t else h_t

    On a CPU the recurrence runs in the fused kernel; elsewhere in plain PyTorch. Both give the same bits.
    """

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        """v + (x - v) / 2."""
        return v + (x - v) * 0.5

    def reset(self, h: Tensor, spike: Tensor) -> Tensor:
        """h where there is no spike, else 0."""
        v: Tensor = HardReset.apply(h, spike)
        return v

    def forward(self, x: Tensor, v: Tensor | None = None, trace: SpikeTrace | None = None) -> tuple[Tensor, Tensor]:
        """The spikes of x (batch, tokens, channels), and the membrane potential (batch, channels) after them."""
        differentiated = torch.is_grad_enabled() and x.requires_grad
        if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
            return super().forward(x, v, trace)
        if differentiated and (v is not None or trace is not None):
            return super().forward(x, v, trace)
        if differentiated:
            spikes, last = FusedLIF.apply(x, self.alpha)
            return spikes, last
        return fused_lif(x, v, trace)

    def potentials(self, x: Tensor, spikes: Tensor) -> Tensor:
        """As `Neuron.potentials`, by the fused kernel where there is one."""
        if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
            return super().potentials(x, spikes)
        found: Tensor = ForcedPotentials.apply(x, spikes)
        return found


def fused_lif(x: Tensor, v: Tensor | None = None, trace: SpikeTrace | None = None) -> tuple[Tensor, Tensor]:
    """What `LIF` computes, by the kernel: x is float32 or float64 on a CPU; no gradient."""
    x = x.detach().contiguous()
    membrane = x.new_zeros(x.shape[0], x.shape[2]) if v is None else v.detach().clone()
    spikes = torch.empty_like(x)
    potentials = None if trace is None else torch.empty_like(x)
    forced = None if trace is None else trace.next_forced()
    forced = None if forced is None else forced.to(x.dtype).contiguous()
    _native.lif_forward(x, forced, membrane, spikes, potentials, torch.get_num_threads())
    if trace is not None and potentials is not None:
        trace.potentials.append(potentials)
        trace.spikes.append(spikes)
    return spikes, membrane


class FusedLIF(torch.autograd.Function):
    """The LIF kernels, forward and backward, for windows that start from v = 0."""

    @staticmethod
    def forward(ctx, x: Tensor, alpha: float) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        """The spikes (batch, tokens, channels) and the last membrane potential (batch, channels)."""
        ctx.save_for_backward(x)
        ctx.alpha = alpha
        spikes, membrane = fused_lif(x)
        ctx.mark_non_differentiable(membrane)
        return spikes, membrane

    @staticmethod
    def backward(ctx, gradient: Tensor, _: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        """The gradient of x through spikes and resets, with the arctangent surrogate."""
        x = ctx.saved_tensors[0].contiguous()
        out = torch.empty_like(x)
        _native.lif_backward(x, gradient.contiguous(), ctx.alpha, out, torch.get_num_threads())
        return out, None


class ForcedPotentials(torch.autograd.Function):
    """The potentials of a LIF whose spikes are given: h_t = v_{t-1} / 2 + x_t / 2,  v_t = h_t (1 - s_t).

    So dL/dx_t = a_t / 2 with a_t = dL/dh_t + (1 - s_t) a_{t+1} / 2, which is the same recurrence backwards in time.
    """

    @staticmethod
    def forward(ctx, x: Tensor, spikes: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        """The potentials (batch, tokens, channels)."""
        ctx.save_for_backward(spikes)
        return _charged(x, spikes)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        """The gradient of x."""
        (spikes,) = ctx.saved_tensors
        # Backwards, what step t + 1 leaves meets the reset of step t; nothing comes after the last step.
        later = torch.cat((spikes[:, :-1].flip(1), torch.zeros_like(spikes[:, :1])), 1)
        return _charged(2 * gradient.flip(1), later).flip(1) / 2, None


def _charged(x: Tensor, spikes: Tensor) -> Tensor:
    trace = SpikeTrace(forced=[spikes])
    fused_lif(x, None, trace)
    return trace.potentials[0]
