"""Spike-aware reconstruction: the rounding of a whole allocation, learned block by block against the float blocks.

A float block and a rounded one run on the same stream, what the rounded blocks before them give. How the block is
rounded is learned (`LearnedRounding`) so that its membrane potentials come close to the float ones:

L = sum over neurons of  E[w (h_hat - h)^2] / (E[w] Var[h]),  w = 1/2 + 1 / (1 + (pi (h - threshold))^2)

h is the float potential; h_hat is charged by the rounded block's currents and reset by the float spikes. The second
term of w is the derivative of the arctangent surrogate: what lies near the threshold weighs most (derived, and so is
the stream of the rounded network: on its own the float one's left more of the loss). From one neuron of a block to
the one before it gradients pass spikes by the same surrogate.

Then the threshold of every neuron is corrected, where a matrix drives it row by row: a threshold theta is the same as 1
with a row divided by theta, so the correction is part of the scales (`FACTORS`). The output block has no neurons and
stays as it was rounded: learned on the float network's predictions it lost more on other text (derived).

Only one block's state of learning is in memory at a time. Blocks one after the other: BRECQ, Li et al., ICLR 2021.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from qslm.allocation import Allocation
from qslm.anatomy import Anatomy
from qslm.calibration.blocks import Block, chain, refused
from qslm.calibration.blocks import streams as streams_of
from qslm.calibration.calls import Call, pieces
from qslm.calibration.text import SEED
from qslm.errors import StudyError, TaskError
from qslm.evaluation.evaluator import evaluation_mode
from qslm.formats.quantized import QuantizedTensor
from qslm.models.neurons import THRESHOLD, Neuron, SpikeTrace
from qslm.progress import SILENT, Progress
from qslm.quantizers import Inputs, RoundedSites
from qslm.quantizers.learned import LearnedRounding, with_factors
from qslm.tasks.task import Task

TOKENS = 1 << 17  # of calibration text, about
LEAST = 256  # tokens, below which a rounding would follow the text, not the network
STEP_TOKENS = 1024  # of one step of the descent, about
PASSES = 2  # over the text
FAR = 0.5  # the weight of a potential far from the threshold; at the threshold it is 1 more
RATE, SCALE_RATE = 0.1, 0.002  # of the logits and of the scales' logarithms, falling as a cosine
COLDEST = 0.003  # the temperature at the end; at the start it is 1
TINY = 1e-12
FACTORS = tuple(2.0 ** (step / 16) for step in (0, -1, 1, -2, 2, -3, 3, -4, 4))  # 1 / theta, the nearest to 1 first

Rounded = dict[str, QuantizedTensor]


@dataclass(frozen=True)
class Flips:
    """The share of a block's spikes that differ from the float block's, as it was rounded before and as learned."""

    block: str
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """The integer sites of an allocation with their learned rounding, and what it was learned on.

    flips: of each block that has been learned; those behind them are as they were rounded.
    """

    sites: Rounded
    flips: tuple[Flips, ...]
    tokens: int


def reconstruct(
    model: nn.Module,
    anatomy: Anatomy,
    task: Task,
    allocation: Allocation,
    inputs: Inputs | None = None,
    progress: Progress = SILENT,
    *,
    done: Reconstruction | None = None,
    keep: Callable[[Reconstruction], object] = lambda _: None,
) -> Reconstruction:
    """Learn how the matrices of all attention blocks are rounded, in their formats.

    It starts from the rounding that `allocation` names, and where a block's spikes come no closer to the
    float block's, that rounding stays; `inputs` is what calibrated quantizers look at. The text is about TOKENS tokens
    of whole batches of the task's calibration split, always the same. Sites that are read at several places, and those
    of the input and the output block, stay as they were rounded. The weights of the network, which are the float ones,
    are not touched. `keep` is given what is learned after every block, to go on from it as `done`.

    Raises StudyError where the network is not a chain of blocks with neurons of `models.neurons`, TaskError where there
    is too little text, and what the task, the network and the quantizers raise.
    """
    with evaluation_mode(model), torch.no_grad():
        calls = _enough(model, task, TOKENS)
        blocks = _spiking(model, anatomy, calls[0])
        streams = list(streams_of(model, blocks[0].block, calls))
        found = done or Reconstruction(_rounded(model, allocation, inputs), (), sum(call.tokens for call in calls))
        for place, block in enumerate(blocks):
            learner = _BlockLearner(block, streams, _sites_of(block.block, anatomy, found.sites))
            if place >= len(found.flips):
                sites, flips = learner.learned(found.sites, progress)
                found = replace(found, sites=sites, flips=(*found.flips, flips))
                keep(found)
            streams = learner.after(found.sites)
    return found


def _rounded(model: nn.Module, allocation: Allocation, inputs: Inputs | None) -> Rounded:
    """The integer sites of an allocation, rounded as it says."""
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    rounded = RoundedSites(state, allocation, inputs)
    return {site.name: rounded[site.name] for site, fmt in allocation.items() if fmt.is_integer}


def check_reconstructible(model: nn.Module, anatomy: Anatomy, task: Task) -> None:
    """Raise what `reconstruct` would raise of the network's blocks and of too little text; nothing is learned."""
    with evaluation_mode(model), torch.no_grad():
        _spiking(model, anatomy, _enough(model, task, LEAST)[0])


def _spiking(model: nn.Module, anatomy: Anatomy, call: Call) -> list["SpikingBlock"]:
    """The attention blocks, found by a call. Raises StudyError where they make no chain, or one has no neurons."""
    return [SpikingBlock.of(model, block) for block in chain(model, anatomy, call)]


def _enough(model: nn.Module, task: Task, tokens: int) -> Sequence[Call]:
    """Pieces of the calibration text. Raises TaskError where it has fewer than LEAST tokens."""
    calls = pieces(model, task, tokens, STEP_TOKENS)
    if (found := sum(call.tokens for call in calls)) < LEAST:
        raise TaskError(
            f"The calibration text of {task.name} has {found} tokens, reconstruction needs {LEAST} or more.",
            "Give more text, or search without reconstruction.",
        )
    return calls


def _sites_of(block: Block, anatomy: Anatomy, rounded: Rounded) -> dict[str, str]:
    """The rounded sites of a block whose parameter nothing else reads, and their names inside it."""
    return {
        site.name: site.name.removeprefix(f"{block.path}.")
        for site in anatomy.sites
        if site.name in rounded and site.block == block.name and not site.aliases
    }


# ---- one block ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SpikingBlock:
    """A block and its neurons, in the order in which they run."""

    block: Block
    neurons: tuple[Neuron, ...]

    @classmethod
    def of(cls, model: nn.Module, block: Block) -> "SpikingBlock":
        """Raises StudyError where there are no neurons that we know."""
        neurons = tuple(one for one in block.module.modules() if isinstance(one, Neuron))
        if not neurons:
            raise refused(model, f"{block.path} has no neurons of qslm.models.neurons")
        return cls(block, neurons)

    def run(self, call: Call, weights: Mapping[str, Tensor] | None = None) -> tuple[Call, list[Tensor]]:
        """The call of the next block, and the current of every neuron; `weights` by their names inside the block."""
        currents: list[Tensor] = []
        hooks = [one.register_forward_pre_hook(lambda _, given: currents.append(given[0])) for one in self.neurons]
        try:
            return self.block.run(call, weights), currents
        finally:
            for hook in hooks:
                hook.remove()

    def fired(self, currents: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The potential and the spikes of every neuron under its current."""
        found = []
        for neuron, current in zip(self.neurons, currents, strict=True):
            trace = SpikeTrace()
            neuron(current, None, trace)
            found.append((trace.potentials[0], trace.spikes[0]))
        return found


# ---- learning ----------------------------------------------------------------------------------------------------


class _BlockLearner:
    """Learns the rounding of one block on the streams in front of it, one for each piece of the text.

    The block's own parameters are the float ones all the while.
    """

    def __init__(self, block: SpikingBlock, streams: Sequence[Call], sites: Mapping[str, str]) -> None:
        self.block, self.streams, self.sites = block, streams, sites
        self.name, self.module = block.block.name, block.block.module

    def learned(self, start: Rounded, progress: Progress) -> tuple[Rounded, Flips]:
        """`start` with the learned rounding of the block's sites, where fewer spikes flip with it."""
        weights = {name: self.module.get_parameter(local) for name, local in self.sites.items()}
        learned = {name: LearnedRounding(weight, start[name]) for name, weight in weights.items()}
        _descend(learned, len(self.streams), self._loss, progress, f"learning the rounding of {self.name}")
        rounded = start | {name: one.rounded(name) for name, one in learned.items()}
        for neuron, name in self.drivers():
            rounded[name] = self.corrected(rounded, neuron, name)
        before, after = self.flips(start), self.flips(rounded)
        return (rounded if after < before else start), Flips(self.name, before, min(before, after))

    def after(self, rounded: Rounded) -> list[Call]:
        """The streams behind the rounded block."""
        weights = self._weights(rounded)
        return [self.block.run(stream, weights)[0] for stream in self.streams]

    def _weights(self, rounded: Rounded) -> dict[str, Tensor]:
        return {local: rounded[name].dequantize() for name, local in self.sites.items()}

    def _loss(self, place: int, learned: Mapping[str, Tensor]) -> Tensor:
        """L of one piece of the text."""
        stream = self.streams[place]
        with torch.no_grad():
            targets = self.block.fired(self.block.run(stream)[1])
        _, currents = self.block.run(stream, {local: learned[name] for name, local in self.sites.items()})
        losses = []
        for neuron, current, (h, spikes) in zip(self.block.neurons, currents, targets, strict=True):
            weight = FAR + 1 / (1 + (math.pi * (h - THRESHOLD)).square())
            off = weight * (neuron.potentials(current, spikes) - h).square()
            losses.append(off.sum() / (weight.sum() * h.var()).clamp(min=TINY))
        return torch.stack(losses).sum()

    def flips(self, rounded: Rounded) -> float:
        """The share of the rounded block's spikes that differ from the float block's."""
        weights, flipped, all_ = self._weights(rounded), 0, 0
        for stream in self.streams:
            ours, theirs = (self.block.fired(self.block.run(stream, some)[1]) for some in (weights, None))
            flipped += sum(int((mine != other).sum()) for (_, mine), (_, other) in zip(ours, theirs, strict=True))
            all_ += sum(spikes.numel() for _, spikes in theirs)
        return flipped / max(all_, 1)

    def drivers(self) -> Iterator[tuple[int, str]]:
        """The neurons whose currents follow a matrix row by row, and that matrix: its output scale is their threshold.

        Every second row doubled has to double the current of these channels, and of no other, to the bit.
        """
        currents = self.block.run(self.streams[0])[1]
        for name, local in self.sites.items():
            weight = self.module.get_parameter(local)
            factors = 1.0 + torch.arange(len(weight)) % 2
            changed = self.block.run(self.streams[0], {local: weight * factors[:, None]})[1]
            for place, (one, other) in enumerate(zip(currents, changed, strict=True)):
                if one.shape[-1] == len(weight) and bool(one.any()) and torch.equal(other, one * factors):
                    yield place, name

    def corrected(self, rounded: Rounded, place: int, name: str) -> QuantizedTensor:
        """The matrix that drives a neuron, its rows times those of FACTORS with which the fewest spikes flip."""
        tensor, neuron, weights = rounded[name], self.block.neurons[place], self._weights(rounded)
        if tensor.format.granularity == "tensor" or tensor.step is not None:
            return tensor
        flips = torch.zeros(len(FACTORS), tensor.shape[0], dtype=torch.int64)
        for stream in self.streams:
            spikes = self.block.fired(self.block.run(stream)[1])[place][1]
            current = self.block.run(stream, weights)[1][place]
            for row, factor in zip(flips, FACTORS, strict=True):
                row += (neuron(current * factor)[0] != spikes).flatten(0, -2).sum(0)
        best = torch.tensor(FACTORS)[flips.min(0).indices]
        return with_factors(tensor, best[:, None], name)


def _descend(
    learned: Mapping[str, LearnedRounding],
    count: int,
    loss_of: Callable[[int, Mapping[str, Tensor]], Tensor],
    progress: Progress,
    what: str,
) -> None:
    """PASSES over `count` pieces of the text in random order, a step of Adam for each, as the temperature falls."""
    if not learned:
        return
    logits = [one.logits for one in learned.values()]
    scales = [one.logarithms for one in learned.values() if one.logarithms.requires_grad]
    groups = [{"params": some, "peak": rate} for some, rate in ((logits, RATE), (scales, SCALE_RATE)) if some]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(SEED)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(PASSES)]).tolist()
    for step, place in enumerate(progress.track(order, len(order), what)):
        done = step / len(order)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * 0.5 * (1 + math.cos(math.pi * done))
        with torch.enable_grad():
            loss = loss_of(place, {name: one(COLDEST**done) for name, one in learned.items()})
            if not bool(loss.isfinite()):
                raise StudyError(f"{what}: the loss of step {step} is {loss.item()}.", "Search without reconstruction.")
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
