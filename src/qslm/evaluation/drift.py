"""How far a rounded network drifts from the float one: its logits, and what its spiking neurons do.

A `Watch` hangs on a network while it is measured. It first remembers the float network, then compares:

divergence  KL(p || q) = sum_i p_i (log p_i - log q_i), p of the float and q of the rounded logits, in nats, mean over
            the rows of the logits (tokens of a language model, sentences of a classifier)
flipped     share of the spikes, over tokens and channels, that differ
rate change firing rate minus that of the float network; the rate is the share of tokens and channels that fire
drift       mean |h_q - h| / std h of the membrane potential before the reset

The last three are of one batch, per `Neuron`; a network without such neurons has none. What is compared is the same
input: batches are told apart by what goes into the network, so that their order does not matter.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from qslm.digest import update_digest
from qslm.evaluation.prefix import tensors
from qslm.models.neurons import Neuron, SpikeTrace

LOGIT_BYTES = 2**30  # of the float logits that are kept, at most; the first batch's always are
LARGEST_EXPONENT = 60.0  # beyond it exp() comes near the end of float32


@dataclass(frozen=True)
class NeuronDrift:
    """One neuron layer: its firing rate, and how it differs from that of the float network."""

    name: str
    rate: float
    rate_change: float
    flipped: float
    drift: float


@dataclass(frozen=True)
class Drift:
    """One rounded network against the float one; `rows` of logits were compared, `neurons` is empty without any."""

    divergence: float
    rows: int
    neurons: tuple[NeuronDrift, ...] = ()

    @property
    def rate_change(self) -> float | None:
        """Mean over the neuron layers; None without any."""
        return _mean([neuron.rate_change for neuron in self.neurons])

    @property
    def flipped(self) -> float | None:
        """Mean over the neuron layers; None without any."""
        return _mean([neuron.flipped for neuron in self.neurons])

    @property
    def drift(self) -> float | None:
        """Mean over the neuron layers; None without any."""
        return _mean([neuron.drift for neuron in self.neurons])


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values and all(map(math.isfinite, values)) else _worst(values)


def _worst(values: Sequence[float]) -> float | None:
    """What stands for a mean that is no finite number."""
    return math.inf if values else None


def divergence(original: Tensor, rounded: Tensor) -> Tensor:
    """KL(p || q) of every row: logits (..., classes) to nats (...), float64; infinite where q is no distribution.

    With d = z_q - z_p and e = d - sum p d it is log1p(sum p (exp(e) - 1 - e)): no difference of large logarithms, so
    that it stays exact where the two are close. Rows are taken one block at a time, to bound memory.
    """
    p, q = original.reshape(-1, original.shape[-1]), rounded.reshape(-1, rounded.shape[-1])
    parts = [_divergence(*pair) for pair in zip(p.split(256), q.split(256), strict=True)]
    return torch.cat(parts).reshape(original.shape[:-1])


def _divergence(original: Tensor, rounded: Tensor) -> Tensor:
    original, rounded = original.float(), rounded.float()
    p = original.softmax(-1)
    d = rounded - original
    e = d - (p * d).sum(-1, keepdim=True)
    found = (p * (torch.expm1(e) - e)).sum(-1, dtype=torch.float64).clamp(min=0).log1p()
    far = ~(e.abs().amax(-1) < LARGEST_EXPONENT)
    if bool(far.any()):
        p_log, q_log = (logits[far].double().log_softmax(-1) for logits in (original, rounded))
        found[far] = torch.where(p_log.exp() > 0, p_log.exp() * (p_log - q_log), 0.0).sum(-1)
    return found.masked_fill(found.isnan(), math.inf)


@dataclass(eq=False)
class _Sums:
    """What one neuron layer did, over its calls in one forward pass; tensors are kept of the float network only."""

    potentials: list[Tensor] = field(default_factory=list)
    spikes: list[Tensor] = field(default_factory=list)
    calls: int = 0
    count: int = 0
    fired: float = 0.0
    flipped: float = 0.0
    moved: float = 0.0

    def rate(self) -> float:
        return self.fired / max(self.count, 1)

    def spread(self) -> float:
        return float(torch.cat([h.double().flatten() for h in self.potentials]).std(correction=0))


_NONE = _Sums()


class Watch:
    """Hooks on a network, for a `with`: `remember` the float network, then `compare` rounded ones with it.

    Of the float logits `bound` bytes are kept, of the batches that come first; what does not fit is not compared,
    which `Drift.rows` tells. Neurons are compared on the first batch that was remembered.
    """

    def __init__(self, model: nn.Module, bound: int = LOGIT_BYTES) -> None:
        self._model, self._bound = model, bound
        self._logits: dict[str, Tensor] = {}
        self._neurons: dict[str, _Sums] = {}
        self._spreads: dict[str, float] = {}
        self._first: str | None = None
        self._remembering = self._looking = False
        self._handles: list[Any] = []
        self._now = ""
        self.compare()

    def __enter__(self) -> Self:
        model = self._model
        self._handles = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end),
        ]
        for name, module in model.named_modules():
            if isinstance(module, Neuron):
                self._handles.append(module.register_forward_pre_hook(_trace, with_kwargs=True))
                self._handles.append(module.register_forward_hook(self._neuron_hook(name), with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def remember(self) -> None:
        """What the network answers from now on is that of the float network; its neurons on the first batch only."""
        self._remembering = True

    def compare(self) -> None:
        """What the network answers from now on is compared, until the next `compare`."""
        self._remembering = False
        self._divergences: dict[str, tuple[float, int]] = {}
        self._compared: dict[str, _Sums] = {}

    @property
    def unseen(self) -> set[str]:
        """The neuron layers that the float network ran on the first batch and that were not compared yet."""
        return {name for name, sums in self._neurons.items() if self._compared.get(name, _NONE).count < sums.count}

    @property
    def neurons(self) -> dict[str, float]:
        """The firing rate of every neuron layer of the float network on the first batch."""
        return {name: sums.rate() for name, sums in self._neurons.items()}

    def result(self) -> Drift:
        """What was compared since the last `compare`; a neuron that did not run is taken not to differ (`unseen`)."""
        rows = sum(count for _, count in self._divergences.values())
        nats = math.fsum(total for total, _ in self._divergences.values()) / rows if rows else math.nan
        return Drift(nats, rows, tuple(map(self._neuron, self._neurons)))

    def _neuron(self, name: str) -> NeuronDrift:
        original = self._neurons[name]
        if name in self.unseen:
            return NeuronDrift(name, original.rate(), 0.0, 0.0, 0.0)
        found = self._compared[name]
        if name not in self._spreads:
            self._spreads[name] = original.spread()
        moved, spread = found.moved / max(found.count, 1), self._spreads[name]
        drift = moved / spread if spread else (0.0 if moved == 0 else math.inf)
        flipped = found.flipped / max(found.count, 1)
        return NeuronDrift(name, found.rate(), found.rate() - original.rate(), flipped, drift)

    def _begin(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        digest = hashlib.sha256()
        for tensor in tensors((inputs, named)):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
            update_digest(digest, [tensor])
        self._now = digest.hexdigest()
        if self._remembering and self._first is None:
            self._first = self._now
        known = self._remembering and bool(self._neurons)
        self._looking = self._now == self._first and not known
        if self._looking:  # the same input again replaces what it gave before
            self._compared.clear()

    def _end(self, module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        found = tensors(outputs)
        logits = next((tensor for tensor in found if tensor.dim() > 1 and tensor.is_floating_point()), None)
        if logits is None:
            return
        if self._remembering:
            kept = sum(_size(tensor) for tensor in self._logits.values())
            if not self._logits or kept + _size(logits) <= self._bound:
                self._logits.setdefault(self._now, logits.detach().clone())
        elif self._now in self._logits:
            nats = divergence(self._logits[self._now], logits.detach())
            self._divergences[self._now] = float(nats.sum()), nats.numel()

    def _neuron_hook(self, name: str) -> Any:
        def look(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], outputs: Any) -> None:
            trace = named["trace"] if "trace" in named else inputs[2]
            if self._looking:
                self._look(name, trace.potentials[-1].detach(), trace.spikes[-1].detach() != 0)

        return look

    @torch.no_grad()
    def _look(self, name: str, potentials: Tensor, spikes: Tensor) -> None:
        if self._remembering:
            sums = self._neurons.setdefault(name, _Sums())
            sums.potentials.append(potentials)
            sums.spikes.append(spikes)
        else:
            sums, original = self._compared.setdefault(name, _Sums()), self._neurons[name]
            sums.flipped += float((spikes != original.spikes[sums.calls]).sum())
            sums.moved += float((potentials - original.potentials[sums.calls]).abs().sum(dtype=torch.float64))
        sums.calls += 1
        sums.count += spikes.numel()
        sums.fired += float(spikes.sum())


def _trace(
    module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Give a neuron a trace to write its potentials into, unless it has one."""
    if len(inputs) > 2:
        return None if inputs[2] is not None else ((*inputs[:2], SpikeTrace()), named)
    return None if named.get("trace") is not None else (inputs, {**named, "trace": SpikeTrace()})


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
