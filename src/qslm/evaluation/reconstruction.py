"""Spike-aware reconstruction: the rounding of a whole allocation, learned block by block against the float network.

The float network's blocks run on what the float blocks before them give, the rounded ones on what the rounded blocks
give. How a block is rounded is learned (`LearnedRounding`) so that its membrane potentials come close to theirs:

L = sum over neurons of  E[rho(h) (h_hat - h)^2] / (E[rho(h)] Var[h]),  rho(h) = 1 / (1 + (pi (h - threshold))^2)

h is the float potential; h_hat is charged by the rounded block's currents and reset by the float spikes. rho is the
derivative of the arctangent surrogate, so rho (h_hat - h) is the change of the surrogate spike, to first order: what
lies near the threshold weighs most (derived). From one neuron of a block to the one before it gradients pass spikes by
the same surrogate. The output block learns the float network's predictions: the KL divergence of the logits.

At last the threshold of every neuron is corrected, where a matrix drives it row by row: a threshold theta is the same
as 1 with a row divided by theta, so the correction is part of the scales (`FACTORS`).

Only one block's state of learning is in memory at a time. Blocks one after the other: BRECQ, Li et al., ICLR 2021.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from qslm.allocation import Allocation
from qslm.anatomy import INPUT, OUTPUT, Anatomy
from qslm.errors import StudyError
from qslm.evaluation.calibration import SEED, Call, pieces
from qslm.evaluation.evaluator import evaluation_mode, reset_state
from qslm.formats.quantized import QuantizedTensor
from qslm.models.neurons import THRESHOLD, Neuron, SpikeTrace
from qslm.progress import SILENT, Progress
from qslm.quantizers import Inputs, RoundedSites
from qslm.quantizers.learned import LearnedRounding, with_factors
from qslm.tasks.task import Task

TOKENS = 1 << 17  # of calibration text, about
STEP_TOKENS = 1024  # of one step of the descent, about
PASSES = 2  # over the text
RATE, SCALE_RATE = 0.1, 0.002  # of the logits and of the scales' logarithms, falling as a cosine
COLDEST = 0.003  # the temperature at the end; at the start it is 1
FACTORS = tuple(2.0 ** (step / 16) for step in (0, -1, 1, -2, 2, -3, 3, -4, 4))  # 1 / theta, the nearest to 1 first

Rounded = dict[str, QuantizedTensor]


@dataclass(frozen=True)
class Flips:
    """The share of a block's spikes that differ from the float network's, as it was rounded before and as learned."""

    block: str
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """The integer sites of an allocation with their learned rounding, and what it was learned on."""

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
) -> Reconstruction:
    """Learn how the matrices of all attention blocks and of the output block are rounded, in their formats.

    It starts from the rounding that `allocation` names; `inputs` is what calibrated quantizers look at. The text is
    about TOKENS tokens of whole batches of the task's calibration split, always the same. Sites that are read at
    several places, and those of the input block, stay as they were rounded. The network, float when it is given, is
    given back as it was. Raises StudyError where it is not a chain of blocks with neurons of `models.neurons`, and what
    the task, the network and the quantizers raise.
    """
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    rounded = RoundedSites(state, allocation, inputs)
    found = {site.name: rounded[site.name] for site, fmt in allocation.items() if fmt.is_integer}
    with evaluation_mode(model), _given_back(model, found), torch.no_grad():
        calls = pieces(model, task, TOKENS, STEP_TOKENS)
        chain = _Chain.of(model, anatomy, calls[0])
        streams = _Streams(chain, calls)
        flips = []
        for block in chain.blocks:
            learner = _BlockLearner(block, streams, _sites_of(block.name, block.path, anatomy, found))
            flips.append(learner.learn(found, progress))
        _learn_output(chain, streams, calls, _sites_of(OUTPUT, "", anatomy, found), found, progress)
    return Reconstruction(found, tuple(flips), sum(call.tokens for call in calls))


def _sites_of(block: str, path: str, anatomy: Anatomy, rounded: Rounded) -> dict[str, str]:
    """The rounded sites of a block whose parameter nothing else reads, and their names inside the module at `path`."""
    prefix = f"{path}." if path else ""
    return {
        site.name: site.name.removeprefix(prefix)
        for site in anatomy.sites
        if site.name in rounded and site.block == block and not site.aliases and site.name.startswith(prefix)
    }


@contextmanager
def _given_back(model: nn.Module, names: Mapping[str, object]) -> Iterator[None]:
    """The parameters of these names are at the end what they were."""
    before = {name: model.get_parameter(name).detach().clone() for name in names}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                model.get_parameter(name).copy_(value)
        reset_state(model)


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


@dataclass(frozen=True, eq=False)
class _Chain:
    """The attention blocks of a network, each of which is called once with the stream that the one before gave."""

    model: nn.Module
    blocks: tuple[_Block, ...]
    several: bool  # whether a block gives a tuple that begins with the stream

    @classmethod
    def of(cls, model: nn.Module, anatomy: Anatomy, call: Call) -> "_Chain":
        """Find the blocks by a call of the network. Raises StudyError where they make no chain."""
        names = [name for name in anatomy.blocks if name not in (INPUT, OUTPUT)]
        paths = [anatomy.path(name) or "" for name in names]
        modules = [model.get_submodule(path) for path in paths]
        seen: list[tuple[nn.Module, Call, Any]] = []
        hooks = [
            module.register_forward_hook(
                lambda module, args, named, output: seen.append((module, Call(args, named), output)), with_kwargs=True
            )
            for module in modules
        ]
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
        return cls(model, tuple(blocks), isinstance(seen[0][2], tuple))

    def first_stream(self, call: Call) -> Tensor:
        """What the first block is given in a call of the network."""
        given: list[Tensor] = []
        hook = self.blocks[0].module.register_forward_pre_hook(lambda _, args: given.append(args[0]))
        try:
            self.model(*call.arguments, **call.keywords)
        finally:
            hook.remove()
        return given[0]

    def logits(self, call: Call, stream: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """What the network answers to a call where `stream` is what the last block gives; no block runs."""
        output = (stream, None) if self.several else stream
        modules = [block.module for block in self.blocks]
        own = [vars(module).get("forward") for module in modules]
        for module in modules:
            vars(module)["forward"] = lambda *_, **__: output
        try:
            found: Tensor = functional_call(self.model, dict(weights), call.arguments, call.keywords)
        finally:
            for module, before in zip(modules, own, strict=True):
                del vars(module)["forward"]
                if before is not None:
                    vars(module)["forward"] = before
        return found


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


class _Streams:
    """The stream in front of a block for every piece of text: in the float network, and in the rounded one."""

    def __init__(self, chain: _Chain, calls: Sequence[Call]) -> None:
        self.exact = [chain.first_stream(call) for call in calls]
        self.rounded = list(self.exact)


# ---- learning ----------------------------------------------------------------------------------------------------


class _BlockLearner:
    """Learns the rounding of one block, and moves the streams behind it."""

    def __init__(self, block: _Block, streams: _Streams, sites: Mapping[str, str]) -> None:
        self.block, self.streams, self.sites = block, streams, sites

    def learn(self, rounded: Rounded, progress: Progress) -> Flips:
        """Put the learned rounding of the block's sites into `rounded` and into the network."""
        before = self._flips(rounded)
        weights = {name: self.block.module.get_parameter(local) for name, local in self.sites.items()}
        learned = {name: LearnedRounding(weights[name], rounded[name]) for name in self.sites}
        _descend(learned, len(self.streams.exact), self._loss, progress, f"learning the rounding of {self.block.name}")
        rounded |= {name: one.rounded(name) for name, one in learned.items()}
        del learned
        for neuron, name in self._drivers():
            rounded[name] = self._corrected(rounded, neuron, name)
        after = self._flips(rounded)
        exact = [self.block.run(stream)[0] for stream in self.streams.exact]
        self.streams.rounded = [self.block.run(one, self._weights(rounded))[0] for one in self.streams.rounded]
        self.streams.exact = exact
        for name, weight in weights.items():
            weight.copy_(rounded[name].dequantize())
        return Flips(self.block.name, before, after)

    def _weights(self, rounded: Rounded) -> dict[str, Tensor]:
        return {local: rounded[name].dequantize() for name, local in self.sites.items()}

    def _loss(self, place: int, learned: Mapping[str, Tensor]) -> Tensor:
        """L of one piece of the text."""
        with torch.no_grad():
            targets = self.block.fired(self.block.run(self.streams.exact[place])[1])
        weights = {local: learned[name] for name, local in self.sites.items()}
        _, currents = self.block.run(self.streams.rounded[place], weights)
        losses = []
        for neuron, current, (h, spikes) in zip(self.block.neurons, currents, targets, strict=True):
            near = 1 / (1 + (math.pi * (h - THRESHOLD)).square())
            off = near * (neuron.potentials(current, spikes) - h).square()
            losses.append(off.sum() / (near.sum() * h.var()).clamp(min=1e-12))
        return torch.stack(losses).sum()

    def _flips(self, rounded: Rounded) -> float:
        """The share of the rounded block's spikes that differ from the float block's."""
        weights, flipped, all_ = self._weights(rounded), 0, 0
        for exact, stream in zip(self.streams.exact, self.streams.rounded, strict=True):
            ours = self.block.fired(self.block.run(stream, weights)[1])
            theirs = self.block.fired(self.block.run(exact)[1])
            flipped += sum(int((mine != other).sum()) for (_, mine), (_, other) in zip(ours, theirs, strict=True))
            all_ += sum(spikes.numel() for _, spikes in theirs)
        return flipped / max(all_, 1)

    def _drivers(self) -> Iterator[tuple[int, str]]:
        """The neurons whose currents follow a matrix row by row, and that matrix: its output scale is their threshold.

        Every second row doubled has to double the current of these channels, and of no other, to the bit.
        """
        stream = self.streams.exact[0]
        currents = self.block.run(stream)[1]
        for name, local in self.sites.items():
            weight = self.block.module.get_parameter(local)
            factors = 1.0 + torch.arange(len(weight)) % 2
            changed = self.block.run(stream, {local: weight * factors[:, None]})[1]
            for place, (one, other) in enumerate(zip(currents, changed, strict=True)):
                if one.shape[-1] == len(weight) and bool(one.any()) and torch.equal(other, one * factors):
                    yield place, name

    def _corrected(self, rounded: Rounded, place: int, name: str) -> QuantizedTensor:
        """The matrix that drives a neuron, its rows times those of FACTORS with which the fewest spikes flip."""
        tensor, neuron, weights = rounded[name], self.block.neurons[place], self._weights(rounded)
        if tensor.format.granularity == "tensor" or tensor.step is not None:
            return tensor
        flips = torch.zeros(len(FACTORS), tensor.shape[0], dtype=torch.int64)
        for exact, stream in zip(self.streams.exact, self.streams.rounded, strict=True):
            spikes = self.block.fired(self.block.run(exact)[1])[place][1]
            current = self.block.run(stream, weights)[1][place]
            for row, factor in zip(flips, FACTORS, strict=True):
                row += (neuron(current * factor)[0] != spikes).flatten(0, -2).sum(0)
        best = torch.tensor(FACTORS)[flips.min(0).indices]
        return with_factors(tensor, best[:, None], name)


def _learn_output(
    chain: _Chain,
    streams: _Streams,
    calls: Sequence[Call],
    sites: Mapping[str, str],
    rounded: Rounded,
    progress: Progress,
) -> None:
    """Learn the rounding of the output block on the predictions of the float network; put it into `rounded`."""
    if not sites:
        return

    def loss_of(place: int, weights: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            exact = chain.logits(calls[place], streams.exact[place], {}).float().log_softmax(-1)
        ours = chain.logits(calls[place], streams.rounded[place], weights).float().log_softmax(-1)
        return F.kl_div(ours, exact, reduction="sum", log_target=True) / exact[..., 0].numel()

    learned = {name: LearnedRounding(chain.model.get_parameter(name), rounded[name]) for name in sites}
    _descend(learned, len(calls), loss_of, progress, "learning the rounding of the output")
    rounded |= {name: one.rounded(name) for name, one in learned.items()}


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
