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
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from qslm.allocation import Allocation
from qslm.anatomy import INPUT, OUTPUT, Anatomy
from qslm.errors import StudyError, TaskError
from qslm.evaluation.calibration import SEED, Call, pieces
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
        blocks = _chain(model, anatomy, calls[0])
        streams = [_first_stream(model, blocks[0], call) for call in calls]
        found = done or Reconstruction(_rounded(model, allocation, inputs), (), sum(call.tokens for call in calls))
        for place, block in enumerate(blocks):
            learner = _BlockLearner(block, streams, _sites_of(block, anatomy, found.sites))
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
        _chain(model, anatomy, _enough(model, task, LEAST)[0])


def _enough(model: nn.Module, task: Task, tokens: int) -> Sequence[Call]:
    """Pieces of the calibration text. Raises TaskError where it has fewer than LEAST tokens."""
    calls = pieces(model, task, tokens, STEP_TOKENS)
    if (found := sum(call.tokens for call in calls)) < LEAST:
        raise TaskError(
            f"The calibration text of {task.name} has {found} tokens, reconstruction needs {LEAST} or more.",
            "Give more text, or search without reconstruction.",
        )
    return calls


def _sites_of(block: "_Block", anatomy: Anatomy, rounded: Rounded) -> dict[str, str]:
    """The rounded sites of a block whose parameter nothing else reads, and their names inside it."""
    return {
        site.name: site.name.removeprefix(f"{block.path}.")
        for site in anatomy.sites
        if site.name in rounded and site.block == block.name and not site.aliases
    }


# ---- the chain of blocks -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Block:
    """One block: stream (rows, tokens, width) in, stream out, its neurons in the order in which they run."""

    name: str
    path: str
    module: nn.Module
    rest: Call  # what it is called with beside the stream
    neurons: tuple[Neuron, ...]

    def run(self, stream: Tensor, weights: Mapping[str, Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """The stream after the block, and the current of every neuron; `weights` by their names inside the block."""
        currents: list[Tensor] = []
        hooks = [one.register_forward_pre_hook(lambda _, given: currents.append(given[0])) for one in self.neurons]
        try:
            output = functional_call(
                self.module, dict(weights or {}), (stream, *self.rest.arguments[1:]), self.rest.keywords
            )
        finally:
            for hook in hooks:
                hook.remove()
        return _stream_of(output), currents

    def fired(self, currents: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The potential and the spikes of every neuron under its current."""
        found = []
        for neuron, current in zip(self.neurons, currents, strict=True):
            trace = SpikeTrace()
            neuron(current, None, trace)
            found.append((trace.potentials[0], trace.spikes[0]))
        return found


def _chain(model: nn.Module, anatomy: Anatomy, call: Call) -> list[_Block]:
    """The attention blocks, each of which is called once with the stream that the one before gave.

    Found by a call of the network. Raises StudyError where they make no chain, or one has no neurons that we know.
    """
    names = [name for name in anatomy.blocks if name not in (INPUT, OUTPUT)]
    paths = [anatomy.path(name) or "" for name in names]
    modules = [model.get_submodule(path) for path in paths]
    seen: list[tuple[nn.Module, Call, Any]] = []

    def look(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        seen.append((module, Call(arguments, keywords), output))

    hooks = [module.register_forward_hook(look, with_kwargs=True) for module in modules]
    try:
        model(*call.arguments, **call.keywords)
    finally:
        for hook in hooks:
            hook.remove()
    _check_chain(model, modules, paths, seen)
    blocks = []
    for name, path, (module, its_call, _) in zip(names, paths, seen, strict=True):
        neurons = tuple(one for one in module.modules() if isinstance(one, Neuron))
        if not neurons:
            raise _refused(model, f"{path} has no neurons of qslm.models.neurons")
        blocks.append(_Block(name, path, module, its_call, neurons))
    return blocks


def _first_stream(model: nn.Module, first: _Block, call: Call) -> Tensor:
    """What the first block is given in a call of the network."""
    given: list[Tensor] = []
    hook = first.module.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    try:
        model(*call.arguments, **call.keywords)
    finally:
        hook.remove()
    return given[0]


def _check_chain(
    model: nn.Module, modules: Sequence[nn.Module], paths: Sequence[str], seen: Sequence[tuple[nn.Module, Call, Any]]
) -> None:
    """Raise StudyError unless every block was called once, in order, with the stream of the one before it alone."""
    if not modules or "" in paths or [module for module, _, _ in seen] != list(modules):
        raise _refused(model, "its attention blocks are not modules that are called one after the other")
    before: Any = None
    for path, (_, call, output) in zip(paths, seen, strict=True):
        if len(call.tensors) != 1 or not call.arguments or not isinstance(call.arguments[0], Tensor):
            raise _refused(model, f"{path} is called with more than one tensor")
        if before is not None and not torch.equal(call.arguments[0], before):
            raise _refused(model, f"{path} is called with something else than the block before it gives")
        first = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(first, Tensor) or first.shape != call.arguments[0].shape:
            raise _refused(model, f"{path} does not give a stream of the shape that it is given")
        before = first


def _refused(model: nn.Module, why: str) -> StudyError:
    return StudyError(
        f"{type(model).__name__} cannot be reconstructed block by block: {why}.", "Search without reconstruction."
    )


def _stream_of(output: Any) -> Tensor:
    stream: Tensor = output[0] if isinstance(output, tuple) else output
    return stream


# ---- learning ----------------------------------------------------------------------------------------------------


class _BlockLearner:
    """Learns the rounding of one block on the streams in front of it, one for each piece of the text.

    The block's own parameters are the float ones all the while.
    """

    def __init__(self, block: _Block, streams: Sequence[Tensor], sites: Mapping[str, str]) -> None:
        self.block, self.streams, self.sites = block, streams, sites

    def learned(self, start: Rounded, progress: Progress) -> tuple[Rounded, Flips]:
        """`start` with the learned rounding of the block's sites, where fewer spikes flip with it."""
        weights = {name: self.block.module.get_parameter(local) for name, local in self.sites.items()}
        learned = {name: LearnedRounding(weight, start[name]) for name, weight in weights.items()}
        _descend(learned, len(self.streams), self._loss, progress, f"learning the rounding of {self.block.name}")
        rounded = start | {name: one.rounded(name) for name, one in learned.items()}
        for neuron, name in self.drivers():
            rounded[name] = self.corrected(rounded, neuron, name)
        before, after = self.flips(start), self.flips(rounded)
        return (rounded if after < before else start), Flips(self.block.name, before, min(before, after))

    def after(self, rounded: Rounded) -> list[Tensor]:
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
            weight = self.block.module.get_parameter(local)
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
