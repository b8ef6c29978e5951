"""A layer of integer weights in the place of a linear one, and the form in which activations reach it.

The same layer measures the network with rounded weights alone, SpikeQuant and its rivals: what differs is the form that
its input takes. So they have the same weights, to the bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qslm.errors import SpikeError
from qslm.formats.quantized import QuantizedTensor
from qslm.formats.scales import scale_codes
from qslm.models.padding import Text
from qslm.spiking.encoding import Encoding, SpikeCounts, encode, stored_bytes
from qslm.spiking.firing import Firing
from qslm.spiking.linear import SpikingLinear
from qslm.spiking.saliency import THRESHOLD, Monitor, StaticSaliency, activations, calibrate_ratio, salient
from qslm.spiking.trains import Cost, Windows


@dataclass
class Record:
    """What went into one layer, counted while the network ran, at positions of `text`.

    tokens: inputs of (in,); zeros, salient, massive: values among them; stored_bytes: of the inputs in the form in
    which they are stored; cost: of their spike trains for one output neuron, where they are spikes. What left it as
    spike counts: fired, outputs; fired_spikes, the sum of their magnitudes.
    """

    text: Text = field(default_factory=Text)
    tokens: int = 0
    zeros: int = 0
    salient: int = 0
    massive: int = 0
    stored_bytes: int = 0
    cost: Cost = field(default_factory=lambda: Cost(0, 0, 0, 0))
    fired: int = 0
    fired_spikes: int = 0

    def add(self, x: Tensor, stored_bytes: int) -> None:
        """Count inputs (tokens, in) and the zeros among them."""
        self.tokens += len(x)
        self.zeros += int((x == 0).sum())
        self.stored_bytes += stored_bytes


class Activations(ABC):
    """The form in which activations reach the weights of one layer, or of several that have the same input."""

    name: str

    @abstractmethod
    def outputs(self, x: Tensor, layer: "RoundedLayer") -> Tensor:
        """The outputs (..., out) float32 of x (..., in), the bias included; what went in is added to the record."""


class FloatActivations(Activations):
    """As they are: what rounding the weights alone costs."""

    name = "float"

    def outputs(self, x: Tensor, layer: "RoundedLayer") -> Tensor:
        """x w^T + b."""
        if layer.record is not None:
            seen = x.reshape(-1, x.shape[-1])[layer.record.text.rows(x)]
            layer.record.add(seen, seen.nbytes)
        return F.linear(x, layer.weight, layer.bias)


FLOAT = FloatActivations()


class SpikeActivations(Activations):
    """Spike counts, and outputs from exact sums of integers (`SpikingLinear`).

    A value is salient above the modified z-score `threshold` within its token, or as the static `saliency` says, which
    a monitor may let follow the workload (`watch`). The record counts the trains of `windows`.
    """

    name = "spikes"

    def __init__(
        self,
        encoding: Encoding,
        threshold: float = THRESHOLD,
        saliency: StaticSaliency | Monitor | None = None,
        windows: Windows | None = None,
    ) -> None:
        self.encoding, self.threshold, self.saliency = encoding, threshold, saliency
        self.windows = windows or Windows()
        self._last: _Kept | None = None

    def counts(self, x: Tensor) -> SpikeCounts:
        """The spike counts of x (..., in), by tokens; several layers that read the same tensor have it encoded once."""
        if self._last is None or not self._last.is_of(x):
            rows = activations(x)
            mask = salient(rows, self.threshold) if self.saliency is None else self.saliency.mask(rows)
            self._last = _Kept(x, encode(rows, self.encoding, mask), self._forget)
        return self._last.counts

    def _forget(self, _: object) -> None:
        self._last = None

    def outputs(self, x: Tensor, layer: "RoundedLayer") -> Tensor:
        """V s_n s_i + b, where V is an exact sum of integers; of a layer that fires, counts times their step.

        Raises SpikeError on NaN and infinities, and as `Firing.fired` does.
        """
        counts = self.counts(x)
        if layer.record is not None:
            seen = counts.part(layer.record.text.rows(x))
            layer.record.add(seen.counts, stored_bytes(seen))
            layer.record.salient += int(seen.salient.sum())
            layer.record.massive += int(seen.massive.sum())
            layer.record.cost += self.windows.cost(seen)
        return layer.outputs(counts).reshape(*x.shape[:-1], -1)


class _Kept:
    """The spike counts of a tensor, until it is changed or no longer there; then `forget` is called."""

    def __init__(self, x: Tensor, counts: SpikeCounts, forget: Callable[[object], None]) -> None:
        self.counts = counts
        self._of, self._version = ref(x, forget), _version(x)

    def is_of(self, x: Tensor) -> bool:
        """Whether these are the counts of x as it is now."""
        return self._of() is x and self._version == _version(x)


def _version(x: Tensor) -> int:
    """How often x was changed in place; tensors of inference mode do not tell, and are taken as they were."""
    return -1 if x.is_inference() else x._version


class RoundedLayer(nn.Module):
    """Integer weights (out, in) with a scale a row, whose groups may be shifted, and the form of its activations.

    firing: where its outputs leave as spike counts, which they do when its inputs are some; None lets numbers leave.
    The form may be changed. Raises SpikeError for weights that are not integers with one scale or step a row, and for
    zero points beyond int8.
    """

    def __init__(self, rounded: QuantizedTensor, bias: Tensor | None, activations: Activations) -> None:
        super().__init__()
        scales = rounded.scales if rounded.step is None else rounded.step
        if rounded.codes is None or scales is None or scales.shape != (len(rounded.codes), 1):
            raise SpikeError(
                f"Weights in {rounded.format} have not one scale a row, which a threshold needs.",
                "Round them into symmetric integers by rows, or by groups that are shifted: int4-sym-row, "
                "int4-sym-g64-p2.",
            )
        zeros = 0 if rounded.zeros is None else rounded.zeros.short()
        integers = rounded.codes.short() - zeros
        if not bool((integers.to(torch.int8) == integers).all()):
            raise SpikeError(f"Weights in {rounded.format} are beyond int8.", "Give symmetric integers of 2 to 8 bits.")
        self.rounded, self.activations = rounded, activations
        self.firing: Firing | None = None
        self.record: Record | None = None
        shifts, size = _shifts(rounded)
        self.neurons = SpikingLinear(integers.to(torch.int8), scales[:, 0].float(), shifts, size, bias)

    @property
    def weight(self) -> Tensor:
        """The weights as numbers, float32 (out, in), made anew each time."""
        return self.neurons.synapses * self.neurons.scales[:, None]

    @property
    def bias(self) -> Tensor | None:
        """Float32 (out,), or None."""
        return self.neurons.bias

    def outputs(self, counts: SpikeCounts) -> Tensor:
        """The outputs float32 (tokens, out) of spike counts (tokens, in)."""
        if self.firing is None:
            return self.neurons.outputs(counts)
        fired, steps = self.firing.fired(self.neurons, counts)
        if self.record is not None:
            self.record.fired += fired.numel()
            self.record.fired_spikes += int(fired.abs().sum())
        return self.firing.values(fired, steps)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        return self.activations.outputs(x, self)

    def extra_repr(self) -> str:
        """Shape, format and form, for print(model)."""
        out, width = self.neurons.codes.shape
        return f"{width}, {out}, {self.rounded.format}, {self.activations.name}"


def _shifts(rounded: QuantizedTensor) -> tuple[Tensor, int] | tuple[None, None]:
    """The shifts int8 (out, groups) of weights, and the inputs of a group; None for both where rows have no groups."""
    if rounded.step is None or rounded.scales is None:
        return None, None
    return scale_codes(rounded.scales, rounded.step, rounded.format).to(torch.int8), rounded.format.group_size


def watch(model: nn.Module) -> list[Monitor]:
    """Put a monitor in the place of every static saliency of a network, one an input: it follows the workload.

    Calibrated again, a saliency finds the share of salient values that it found before; one that found none keeps as it
    is, and has no monitor. What a network gives then depends on what it was given before.
    """
    forms = {layer.activations for layer in model.modules() if isinstance(layer, RoundedLayer)}
    monitors = []
    for form in forms:
        if isinstance(form, SpikeActivations) and isinstance(form.saliency, StaticSaliency) and form.saliency.ratio > 0:
            form.saliency = Monitor(form.saliency, calibrate=partial(calibrate_ratio, ratio=form.saliency.ratio))
            monitors.append(form.saliency)
    return monitors
