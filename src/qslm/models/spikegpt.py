"""SpikeGPT (Zhu et al., TMLR 2024): RWKV mixing with spiking residual branches, from token ids to logits.

x = H(emb[ids])                              binarized embedding, H(x) = [x >= 0]
x = ln0(x)                                   in block 0 only
x = x + LIF(time_mixing(ln1(x)))             every block
x = x + LIF(channel_mixing(ln2(x)))
x = dropout(x)                               training only
logits = head(ln_out(x))                     language model
logits = classifier(mean_t ln_out(x))        classifier; padding is left out of the mean

One code computes both forms of the network: `forward` takes a window from the empty state, `advance` any number of
tokens from a carried state, `step` one token. State-dict keys are those of the published checkpoints. The published
inference code divides weights every six layers; across a LIF that changes the function, so it is not done here.
Source: github.com/ridgerchu/SpikeGPT, `src/model.py`.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qslm.errors import CheckpointError, TaskError
from qslm.models.config import SpikeGPTConfig
from qslm.models.folds import Fold
from qslm.models.neurons import LIF, SpikeTrace, heaviside
from qslm.models.wkv import empty_state, wkv


class LayerState(NamedTuple):
    """What one block carries from token to token."""

    att_input: Tensor  # (batch, width), the last input of time mixing
    wkv: Tensor  # (batch, 3, width)
    att_membrane: Tensor  # (batch, width)
    ffn_input: Tensor  # (batch, width), the last input of channel mixing
    ffn_membrane: Tensor  # (batch, width)


class BinaryEmbedding(nn.Embedding):
    """An embedding of which the network sees signs only: H(weight[ids]); `sign` stores it exactly."""

    binarized = True

    def forward(self, ids: Tensor) -> Tensor:
        """H(weight[ids]), {0, 1} of shape (batch, tokens, width), of ids (batch, tokens)."""
        return heaviside(super().forward(ids))


def previous_token(x: Tensor, last: Tensor) -> Tensor:
    """x (batch, tokens, width) one token later; `last` (batch, width) stands before the first."""
    return torch.cat((last[:, None], x[:, :-1]), 1)


def mix(x: Tensor, previous: Tensor, share: Tensor) -> Tensor:
    """x * share + previous * (1 - share), share (1, 1, width)."""
    return torch.lerp(previous, x, share)


class TimeMixing(nn.Module):
    """Attention: output(sigmoid(receptance) * wkv), each input a mix of this token and the last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.time_decay = nn.Parameter(torch.zeros(width))
        self.time_first = nn.Parameter(torch.zeros(width))
        self.time_mix_k = nn.Parameter(torch.full((1, 1, width), 0.5))
        self.time_mix_v = nn.Parameter(torch.full((1, 1, width), 0.5))
        self.time_mix_r = nn.Parameter(torch.full((1, 1, width), 0.5))
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, last: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """The current (batch, tokens, width) of x, of the same shape, and the WKV state (batch, 3, width) after it."""
        previous = previous_token(x, last)
        k = self.key(mix(x, previous, self.time_mix_k)).to(x.dtype)
        v = self.value(mix(x, previous, self.time_mix_v)).to(x.dtype)
        r = self.receptance(mix(x, previous, self.time_mix_r))
        attended, state = wkv(-torch.exp(self.time_decay), self.time_first, k, v, state)
        return self.output(torch.sigmoid(r) * attended).to(x.dtype), state


class RectifiedInput(nn.Linear):
    """A linear layer after relu, which leaves most of its inputs zero."""

    sparse = True  # what `find_anatomy` sees


class ChannelMixing(nn.Module):
    """Feed-forward: sigmoid(receptance) * value(relu(key)^2)."""

    def __init__(self, width: int, ffn_width: int) -> None:
        super().__init__()
        self.time_mix_k = nn.Parameter(torch.full((1, 1, width), 0.5))
        self.time_mix_r = nn.Parameter(torch.full((1, 1, width), 0.5))
        self.key = nn.Linear(width, ffn_width, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)
        self.value = RectifiedInput(ffn_width, width, bias=False)

    def forward(self, x: Tensor, last: Tensor) -> Tensor:
        """The current (batch, tokens, width) of x, of the same shape."""
        previous = previous_token(x, last)
        k = F.relu(self.key(mix(x, previous, self.time_mix_k))).square()
        r = self.receptance(mix(x, previous, self.time_mix_r))
        return (torch.sigmoid(r) * self.value(k)).to(x.dtype)


class Block(nn.Module):
    """One attention block: time mixing and channel mixing, each through a LIF onto the residual stream."""

    def __init__(self, config: SpikeGPTConfig, first: bool) -> None:
        super().__init__()
        self.ln0 = nn.LayerNorm(config.width) if first else None
        self.ln1 = nn.LayerNorm(config.width)
        self.ln2 = nn.LayerNorm(config.width)
        self.att = TimeMixing(config.width)
        self.ffn = ChannelMixing(config.width, config.ffn_width)
        self.att_lif = LIF()
        self.ffn_lif = LIF()

    def forward(self, x: Tensor, state: LayerState | None, trace: SpikeTrace | None) -> tuple[Tensor, LayerState]:
        """The residual stream (batch, tokens, width) after x, of the same shape, and the state after its last token."""
        empty = x.new_zeros(x.shape[0], x.shape[2])
        if self.ln0 is not None:
            x = self.ln0(x)
        a = self.ln1(x)
        current, attention = self.att(a, state.att_input if state else empty, state.wkv if state else None)
        spikes, att_membrane = self.att_lif(current, state.att_membrane if state else None, trace)
        x = x + spikes
        f = self.ln2(x)
        current = self.ffn(f, state.ffn_input if state else empty)
        spikes, ffn_membrane = self.ffn_lif(current, state.ffn_membrane if state else None, trace)
        return x + spikes, LayerState(a[:, -1], attention, att_membrane, f[:, -1], ffn_membrane)


class ResidualDropout(nn.Module):
    """Dropout that draws from its own generator and costs one random byte a value.

    The rate is rounded to 1/256. `generator` belongs to the training, so that no global state is touched and a
    resumed training draws what the uninterrupted one would have drawn.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.0
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Zero a share `rate` of x in training, and scale the rest by its inverse."""
        threshold = round(self.rate * 256)
        if not self.training or threshold == 0:
            return x
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device)
        words.random_(-(2**63), None, generator=self.generator)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= threshold
        return x * kept * (256 / (256 - threshold))


class SpikeGPT(nn.Module):
    """A SpikeGPT language model, or a classifier when `config.classes` is set."""

    def __init__(self, config: SpikeGPTConfig) -> None:
        super().__init__()
        self.config = config
        embedding = BinaryEmbedding if config.binary_embedding else nn.Embedding
        self.emb = embedding(config.vocabulary_size, config.width)
        self.blocks = nn.ModuleList(Block(config, first=i == 0) for i in range(config.layers))
        self.ln_out = nn.LayerNorm(config.width)
        if config.classes is None:
            self.head = nn.Linear(config.width, config.vocabulary_size, bias=False)
        else:
            self.classifier = nn.Linear(config.width, config.classes, bias=False)
        self.dropout = ResidualDropout()

    def forward(self, ids: Tensor, mask: Tensor | None = None, trace: SpikeTrace | None = None) -> Tensor:
        """The logits of ids (batch, tokens): (batch, tokens, vocabulary), or (batch, classes) of a classifier.

        `mask` (batch, tokens) is True on real tokens; a classifier averages over those. `trace` records the spikes.
        Raises TaskError when the ids are no tokens of this network.
        """
        self._check(ids, mask)
        x, _ = self.hidden(ids, None, trace)
        if self.config.classes is None:
            return self.head(x)
        real = torch.ones_like(ids, dtype=x.dtype) if mask is None else mask.to(x.dtype)
        pooled = (x * real[:, :, None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)
        return self.classifier(pooled)

    def hidden(
        self, ids: Tensor, state: list[LayerState] | None, trace: SpikeTrace | None
    ) -> tuple[Tensor, list[LayerState]]:
        """The normed residual stream (batch, tokens, width) of ids (batch, tokens), and the state after them."""
        x = self.emb(ids)
        states = []
        for i, block in enumerate(self.blocks):
            x, after = block(x, state[i] if state else None, trace)
            x = self.dropout(x)
            states.append(after)
        return self.ln_out(x), states

    def folds(self) -> tuple[Fold, ...]:
        """Where scales of channels can be taken up, to the bit.

        A LayerNorm makes what mixing, which is elementwise, and pooling, which is linear, hand on to the matrices
        after it. WKV is linear in the values, and relu(c k)^2 = c^2 relu(k)^2.
        """
        found = []
        for i in range(self.config.layers):
            block, att, ffn = f"blocks.{i}", f"blocks.{i}.att", f"blocks.{i}.ffn"
            mixed = tuple(f"{att}.{name}.weight" for name in ("key", "value", "receptance"))
            found += [
                Fold((f"{block}.ln1.weight", f"{block}.ln1.bias"), mixed),
                Fold((f"{att}.value.weight",), (f"{att}.output.weight",)),
                Fold((f"{block}.ln2.weight", f"{block}.ln2.bias"), (f"{ffn}.key.weight", f"{ffn}.receptance.weight")),
                Fold((f"{ffn}.key.weight",), (f"{ffn}.value.weight",), degree=2),
            ]
        readout = "head.weight" if self.config.classes is None else "classifier.weight"
        return (*found, Fold(("ln_out.weight", "ln_out.bias"), (readout,)))

    def initial_state(self, batch: int) -> list[LayerState]:
        """The state before the first token of `batch` sequences."""
        weight = self.ln_out.weight
        zeros = weight.new_zeros(batch, self.config.width)
        empty = empty_state(zeros[:, None])
        return [LayerState(zeros, empty, zeros, zeros, zeros) for _ in self.blocks]

    def advance(
        self, ids: Tensor, state: list[LayerState], trace: SpikeTrace | None = None
    ) -> tuple[Tensor, list[LayerState]]:
        """The logits (batch, tokens, vocabulary) of ids (batch, tokens) after `state`, and the state after them.

        Raises CheckpointError on a classifier, TaskError when the ids are no tokens of this network.
        """
        if self.config.classes is not None:
            raise CheckpointError("A classifier does not predict tokens.", "Load a language model.")
        self._check(ids)
        x, state = self.hidden(ids, state, trace)
        return self.head(x), state

    def step(
        self, ids: Tensor, state: list[LayerState], trace: SpikeTrace | None = None
    ) -> tuple[Tensor, list[LayerState]]:
        """`advance` by one token a sequence: the logits (batch, vocabulary) of ids (batch,), and the state after it."""
        logits, state = self.advance(ids[:, None], state, trace)
        return logits[:, 0], state

    def _check(self, ids: Tensor, mask: Tensor | None = None) -> None:
        """Raise TaskError unless ids (batch, tokens) are words of the vocabulary, one or more, and the mask fits."""
        if ids.dim() != 2 or ids.dtype not in (torch.int32, torch.int64) or ids.numel() == 0:
            raise TaskError(
                f"The ids have the shape {tuple(ids.shape)} and the type {ids.dtype}.",
                "Give integers (batch, tokens), one token or more.",
            )
        smallest, largest = (int(extreme) for extreme in ids.aminmax())
        if smallest < 0 or largest >= self.config.vocabulary_size:
            raise TaskError(
                f"The ids reach from {smallest:,} to {largest:,}, but the model's vocabulary has "
                f"{self.config.vocabulary_size:,} tokens.",
                "Encode the text with the tokenizer that the model was trained with.",
            )
        if mask is not None and mask.shape != ids.shape:
            raise TaskError(
                f"The mask has the shape {tuple(mask.shape)}, the ids have {tuple(ids.shape)}.",
                "Give one value of the mask for each token.",
            )
