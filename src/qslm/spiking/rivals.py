"""The activations of published 4-bit methods, re-implemented from their recipes: each is "-like", none is their code.

They stand beside `SpikeActivations` on the same rounded weights. Those with scales of their own for some channels or
groups cannot put them into a threshold, so they multiply numbers, as their published simulations do.
"""

from math import ceil

import torch
from torch import Tensor
from torch.nn import functional as F

from qslm.errors import SpikeError
from qslm.spiking.encoding import Encoding, encode
from qslm.spiking.layer import Activations, RoundedLayer
from qslm.spiking.saliency import activations

OUTLIER_BITS = 8  # of Atom
_TINY = 1e-9


class RoundToNearest(Activations):
    """Symmetric integers with one scale a token, nothing salient; clipped at 0.9 it is QuaRot's after its rotations."""

    def __init__(self, bits: int = 4, clip: float = 1.0) -> None:
        self.encoding = Encoding(bits, bits, clip)
        self.name = f"round to nearest, {bits} bits"

    def outputs(self, x: Tensor, layer: RoundedLayer) -> Tensor:
        """Exact sums of integers, scaled."""
        rows = activations(x)
        counts = encode(rows, self.encoding, torch.zeros(rows.shape, dtype=torch.bool))
        if layer.record is not None:
            seen = counts.counts[layer.record.text.rows(x)]
            layer.record.add(seen, _bytes(seen, self.encoding.bits))
        return layer.neurons.outputs(counts).reshape(*x.shape[:-1], -1)


class AtomLike(Activations):
    """Atom (Zhao et al., MLSys 2024): the channels of largest E[x^2] in 8 bits, the others in 4-bit groups.

    importance: E[x^2] (in,); ratio: the share of channels in 8 bits, with one scale a token; group: channels of a
    scale of the others, in the order of their importance, None for all; they reach 0.9 of the largest value.
    """

    def __init__(self, importance: Tensor, ratio: float, group: int | None = 128, bits: int = 4) -> None:
        if not 0 < ratio < 1 or (group is not None and group < 1):
            raise SpikeError(f"There are no outliers of ratio {ratio} and groups of {group}.", "Give 0.0625 and 128.")
        order = importance.argsort(stable=True)
        outliers = max(1, round(ratio * len(order)))
        self._rest, self._outliers = order[:-outliers], order[-outliers:]
        self.group, self.bits = group or max(len(self._rest), 1), bits
        self.name = f"Atom-like, {ratio:.2%} in {OUTLIER_BITS} bits, groups of {self.group}"

    def rounded(self, rows: Tensor) -> Tensor:
        """What of activations (tokens, in) is left."""
        found = torch.empty_like(rows)
        found[:, self._outliers] = _symmetric(rows[:, self._outliers], OUTLIER_BITS, 1.0)
        for group in self._rest.split(self.group):
            found[:, group] = _symmetric(rows[:, group], self.bits, 0.9)
        return found

    def outputs(self, x: Tensor, layer: RoundedLayer) -> Tensor:
        """Numbers times the dequantized weights."""
        rows = activations(x)
        found = self.rounded(rows)
        if layer.record is not None:
            seen, scales = found[layer.record.text.rows(x)], 1 + ceil(len(self._rest) / self.group)
            wide = len(self._outliers) * (OUTLIER_BITS - self.bits) * len(seen) // 8
            layer.record.add(seen, _bytes(seen, self.bits, scales) + wide)
            layer.record.salient += len(self._outliers) * len(seen)
        return F.linear(found, layer.weight, layer.bias).reshape(*x.shape[:-1], -1)


class SpikeLlmLike(Activations):
    """SpikeLLM (ICLR 2025): salient channels get one bit more on the same asymmetric range of a token (GIF neurons).

    saliency: of every channel (in,), `spikellm_saliency`; ratio: the share of channels that are salient.
    """

    def __init__(self, saliency: Tensor, ratio: float = 0.1, bits: int = 4, more: int = 1) -> None:
        count = max(1, round(ratio * len(saliency)))
        self.bits, self.more = bits, more
        self._salient = torch.zeros(len(saliency), dtype=torch.bool)
        self._salient[saliency.argsort(descending=True, stable=True)[:count]] = True
        self.name = f"SpikeLLM-like, {ratio:.0%} in {bits + more} bits"

    def rounded(self, rows: Tensor) -> Tensor:
        """What of activations (tokens, in) is left."""
        low, high = torch.aminmax(rows, dim=1, keepdim=True)
        levels = torch.where(self._salient, (1 << (self.bits + self.more)) - 1, (1 << self.bits) - 1)
        scale = ((high - low) / levels).clamp(1e-5, 1e4)
        zero = (-low / scale).round()
        return ((rows / scale + zero).round().clamp(min=torch.zeros(()), max=levels.float()) - zero) * scale

    def outputs(self, x: Tensor, layer: RoundedLayer) -> Tensor:
        """Numbers times the dequantized weights."""
        rows = activations(x)
        found, salient = self.rounded(rows), int(self._salient.sum())
        if layer.record is not None:
            seen = found[layer.record.text.rows(x)]
            layer.record.add(seen, _bytes(seen, self.bits, 2) + salient * self.more * len(seen) // 8)
            layer.record.salient += salient * len(seen)
        return F.linear(found, layer.weight, layer.bias).reshape(*x.shape[:-1], -1)


def spikellm_saliency(weight: Tensor, moment: Tensor) -> Tensor:
    """The mean over inputs x of (x W^T W) * x, channel by channel (in,): W (out, in), moment E[x x^T] (in, in)."""
    return (moment * (weight.T @ weight)).sum(1)


def _symmetric(rows: Tensor, bits: int, clip: float) -> Tensor:
    """Rounded to integers -2^(bits-1) .. 2^(bits-1) - 1 times one scale a row, which reaches `clip` of the largest."""
    most = (1 << (bits - 1)) - 1
    scale = (rows.abs().amax(1, keepdim=True) * (clip / most)).clamp(min=_TINY)
    return (rows / scale).round().clamp(-most - 1, most) * scale


def _bytes(rows: Tensor, bits: int, scales: int = 1) -> int:
    """Of activations with some float32 scales a token."""
    tokens, width = rows.shape
    return ceil(tokens * width * bits / 8) + 4 * scales * tokens
