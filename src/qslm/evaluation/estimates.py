"""What every format at every site is expected to lose, from one forward and backward pass of the float network."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import log
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qslm import _native
from qslm.anatomy import Anatomy
from qslm.calibration.calls import Call, call_of
from qslm.calibration.layers import linear_layers
from qslm.calibration.text import SEED, calibration_split
from qslm.evaluation.evaluator import GROWTH_BYTES, evaluation_mode, reset_state
from qslm.formats import Format, canonical_json
from qslm.models.folds import Fold
from qslm.progress import SILENT, Progress
from qslm.quantizers import SCALING, Inputs, folds_of, round_site
from qslm.search.costs import Costs
from qslm.search.options import Options
from qslm.tasks.task import Task

TOKENS = 4096  # tokens of calibration text, about
SAMPLE_TOKENS = 512  # of one sample, which bounds the memory of the backward pass
BACKWARD = 2  # a backward pass counts as two forward passes
TINY = 1e-30  # nats, beside a cost of nothing

Found = dict[tuple[Format, str], float]  # the cost of a site by format and quantizer


@dataclass(frozen=True, eq=False)
class Estimate:
    """The expected costs, the samples that they are from, and the work: tokens times blocks, backward as two."""

    costs: Costs
    samples: int
    tokens: int
    work: int

    def to_json(self) -> str:
        """Canonical JSON, every number to the bit."""
        costs = [[site, str(fmt), cost] for (site, fmt), cost in self.costs.values.items()]
        quantizers = [[site, str(fmt), name] for (site, fmt), name in self.costs.quantizers.items()]
        return canonical_json(
            {
                "costs": costs,
                "quantizers": quantizers,
                "samples": self.samples,
                "tokens": self.tokens,
                "work": self.work,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Estimate":
        """The inverse of `to_json`."""
        content = json.loads(text)
        costs, quantizers = (
            {(site, Format.parse(fmt)): value for site, fmt, value in content.pop(name)}
            for name in ("costs", "quantizers")
        )
        return cls(Costs(costs, quantizers), **content)


def estimate_costs(
    model: nn.Module,
    anatomy: Anatomy,
    task: Task,
    options: Options,
    progress: Progress = SILENT,
    inputs: Inputs | None = None,
) -> Estimate:
    """Expect of every matrix i that `options` let a search round, in each of their formats f, the loss

    c(i, f) = 1/2 sum_j F_j (w_j - w_j(f))^2, in nats a prediction.

    F is the diagonal of the Fisher information, E[g^2] over samples and over labels drawn from the network's own
    predictions, so that c is the second-order term of the KL divergence to the float network (LeCun et al. 1990,
    "Optimal brain damage"; Kirkpatrick et al. 2017). The first-order term of that divergence is zero: no network is
    closer to the float network than itself. Through spikes g is the surrogate gradient: c is a proxy of how far the
    predictions drift, which orders candidates and never decides. The sum over sites leaves interactions out.

    With `inputs`, the statistics that calibrated quantizers look at, the matrices of linear layers have

    c(i, f) = 1/2 sum_r G_r d_r M d_r^T,  d = W - W(f), M = E[x x^T] of the inputs, G_r = E[g_r^2] of output r,

    the Fisher information as a product of inputs and outputs (K-FAC, Martens and Grosse 2015, with the diagonal of the
    outputs): what a quantizer spreads over the inputs is seen together. Of several quantizers a format has the one of
    the least cost, but of the matrices that read one fold's channels (`folds_of`) either all have scaled columns or
    none, in all formats: whichever costs them less (`_left`). No format is expected to lose less than one of more bits
    that is stored alike.

    The text is a sample of about TOKENS tokens of the task's `calibration_split`, always the same. A matrix that no
    gradient reaches is expected to lose as much a number as the others do. Where none is reached, the network gives no
    logits `(..., classes)`, or they or the gradients are not finite, c follows from the bits alone (`Costs.by_bits`).

    Weights, mode, gradients and global random state are left as they were. Takes the memory of the weights a second
    time. Raises what the task and the network raise.
    """
    sites, formats = options.matrices(anatomy), options.formats
    weights = dict(model.named_parameters(remove_duplicate=False))
    seen = {} if inputs is None else {name: layer for name, layer in linear_layers(model, anatomy) if name in inputs}
    fisher = _fisher(model, {site.name: weights[site.name] for site in sites}, seen, task, progress)
    work = (1 + BACKWARD) * fisher.tokens * len(anatomy.blocks)
    numel = {site.name: site.numel for site in sites}
    if fisher.sums:
        found: dict[str, Found] = {}
        for site in progress.track(sites, len(sites), "rounding every site at every width"):
            if site.name in fisher.sums:
                found[site.name] = _site_costs(weights[site.name], fisher, site.name, options, inputs)
        left = _left(found, list(_scaled(folds_of(model, anatomy), inputs)), anatomy, options)
        quantizers = {(name, fmt): names[0] for name, names in left.items() for fmt in formats}
        values: dict[tuple[str, Format], float] = {}
        for name, costs in found.items():
            for fmt, (cost, quantizer) in _least(costs, left.get(name, options.quantizers), formats).items():
                values[name, fmt], quantizers[name, fmt] = cost, quantizer
        if np.isfinite(list(values.values())).all():
            values = _with_unreached(values, numel, formats)
            several = quantizers if len(options.quantizers) > 1 else {}
            return Estimate(Costs(values, several), fisher.samples, fisher.tokens, work)
    return Estimate(Costs.by_bits(numel.items(), formats), fisher.samples, fisher.tokens, work)


def _site_costs(weight: Tensor, fisher: "_Fisher", name: str, options: Options, inputs: Inputs | None) -> Found:
    """c of one site in every format, rounded by every quantizer."""
    weight = weight.detach().cpu()
    if inputs is not None:
        inputs = {name: inputs[name]} if name in inputs else {}  # read once for all formats
    moment = inputs[name].moment if inputs and name in fisher.of_outputs else None
    found: Found = {}
    for fmt in options.formats:
        for quantizer in options.quantizers:
            error = round_site(weight, fmt, quantizer, name=name, inputs=inputs).dequantize().sub_(weight)
            found[fmt, quantizer] = _cost(error, fisher.sums[name], moment) / (2 * fisher.predictions)
    return found


def _least(found: Found, quantizers: Sequence[str], formats: Sequence[Format]) -> dict[Format, tuple[float, str]]:
    """The least cost of one site in every format with the quantizer that it is of; it does not fall as bits do."""
    costs: dict[Format, tuple[float, str]] = {}
    least: dict[Format, float] = {}  # of what is stored alike
    for fmt in formats:
        quantizer = min(quantizers, key=lambda name: found[fmt, name])
        alike = replace(fmt, bits=8)
        least[alike] = max(least.get(alike, 0.0), found[fmt, quantizer])
        costs[fmt] = least[alike], quantizer
    return costs


def _scaled(folds: Iterable[Fold], inputs: Inputs | None) -> Iterator[Fold]:
    """The folds whose consumers a quantizer may scale."""
    for fold in folds:
        name = fold.consumers[0]
        if inputs is not None and name in inputs and inputs[name].exponents is not None:
            yield fold


def _left(
    found: Mapping[str, Found], folds: Sequence[Fold], anatomy: Anatomy, options: Options
) -> dict[str, tuple[str, ...]]:
    """What is left to choose from for the consumers of each fold: the quantizers that scale columns, or the others.

    Scaled they are where the least costs, summed over the consumers, are lower so, in the geometric mean over the
    formats: few bits cost much more than many, and a search may end in any (derived). Never where a matrix takes the
    scales up and may get scales in 8 bits, whose step all rows share.
    """
    scaling = tuple(name for name in options.quantizers if name in SCALING)
    others = tuple(name for name in options.quantizers if name not in SCALING)

    def summed(consumers: Sequence[str], fmt: Format, quantizers: Sequence[str]) -> float:
        return sum(min(found[name][fmt, one] for one in quantizers) for name in consumers) + TINY

    stepping = any(template.has_step for template in options.templates)
    left: dict[str, tuple[str, ...]] = {}
    for fold in folds if scaling and others else ():
        known = found.keys() >= set(fold.consumers)
        pairs = [[summed(fold.consumers, fmt, some) for some in (scaling, others)] for fmt in options.formats if known]
        gain = sum(log(rest) - log(scaled) for scaled, rest in pairs)
        stepped = stepping and not all(anatomy[name].is_vector for name in fold.producers)
        left |= dict.fromkeys(fold.consumers, scaling if gain > 0 and not stepped else others)
    return left


def _cost(error: Tensor, sums: Tensor, moment: Tensor | None) -> float:
    """The weighed square of a rounding error (out, in), twice over: by number, or by output and inputs."""
    if moment is None:
        return float(error.square_().mul_(sums).sum(dtype=torch.float64))
    return float((error @ moment).mul_(error).sum(1).mul_(sums).sum(dtype=torch.float64))


def _with_unreached(
    values: dict[tuple[str, Format], float], numel: Mapping[str, int], formats: Sequence[Format]
) -> dict[tuple[str, Format], float]:
    """The costs, and those of the sites without any: the others' cost a number, for each of theirs."""
    reached = {name for name, _ in values}
    total = sum(numel[name] for name in reached)
    means = {fmt: sum(values[name, fmt] for name in reached) / total for fmt in formats}
    rest = {(name, fmt): numel[name] * means[fmt] for name in numel.keys() - reached for fmt in formats}
    return {**values, **rest}


@dataclass(frozen=True, eq=False)
class _Fisher:
    """The sums of squared gradients of each site that one reached, over the samples, and what they were summed over.

    sums: of every number of the site or, where it is one of `of_outputs`, of every output (out,) of its layers.
    """

    sums: dict[str, Tensor]
    of_outputs: frozenset[str]
    samples: int
    tokens: int
    predictions: int


def _fisher(
    model: nn.Module,
    live: Mapping[str, nn.Parameter],
    seen: Mapping[str, nn.Linear],
    task: Task,
    progress: Progress,
) -> _Fisher:
    generator = torch.Generator().manual_seed(SEED)
    sums: dict[str, Tensor] = {}
    samples = tokens = predictions = 0
    numbers = {name: weight for name, weight in live.items() if name not in seen}
    with evaluation_mode(model), _only(live.values(), model), _summing(numbers, sums), _summing_outputs(seen, sums):
        drawn = _samples(model, task, generator)
        for sample in progress.track(drawn, len(drawn), "what to expect"):
            reset_state(model)
            samples, tokens = samples + 1, tokens + sample.tokens
            logits = _logits(model, sample)
            if logits is None:
                sums.clear()
                break
            labels = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
            F.cross_entropy(logits, labels.to(logits.device), reduction="sum").backward()
            predictions += len(logits)
            del logits
            _native.return_freed_memory(GROWTH_BYTES)
    return _Fisher(sums, frozenset(seen), samples, tokens, predictions)


def _logits(model: nn.Module, sample: Call) -> Tensor | None:
    """The logits of a sample as (predictions, classes) that can be differentiated; None where there are none."""
    logits = model(*sample.arguments, **sample.keywords)
    if not isinstance(logits, Tensor) or logits.dim() < 2 or not logits.requires_grad:
        return None
    return logits.flatten(0, -2).float() if bool(logits.isfinite().all()) else None


@contextmanager
def _only(chosen: Iterable[nn.Parameter], model: nn.Module) -> Iterator[None]:
    """Gradients are made for the chosen parameters alone; at the end everything is as it was, the neurons at rest."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    wanted = set(chosen)
    try:
        for parameter, _, _ in before:
            parameter.grad = None
            parameter.requires_grad_(parameter in wanted)
        with torch.enable_grad():
            yield
    finally:
        for parameter, requires_grad, gradient in before:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
        reset_state(model)


@contextmanager
def _summing(live: Mapping[str, nn.Parameter], sums: dict[str, Tensor]) -> Iterator[None]:
    """Every gradient is squared, added to the sum of its site in float32, and dropped as soon as it is there."""

    def adder(name: str) -> Callable[[Tensor], None]:
        def add(weight: Tensor) -> None:
            if weight.grad is not None:
                square = weight.grad.detach().to("cpu", torch.float32).square_()
                weight.grad = None
                sums[name] = sums[name].add_(square) if name in sums else square

        return add

    hooks = [weight.register_post_accumulate_grad_hook(adder(name)) for name, weight in live.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _summing_outputs(layers: Mapping[str, nn.Linear], sums: dict[str, Tensor]) -> Iterator[None]:
    """The gradient of every output of the layers is squared and added to the sum of the layer's site."""

    def adder(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def add(gradient: Tensor) -> None:
            square = gradient.detach().flatten(0, -2).to("cpu", torch.float32).square().sum(0)
            sums[name] = sums[name].add_(square) if name in sums else square

        def watch(layer: nn.Module, arguments: Any, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(add)

        return watch

    hooks = [layer.register_forward_hook(adder(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _samples(model: nn.Module, task: Task, generator: torch.Generator) -> list[Call]:
    """A sample of the calibration text: a row of every batch in random order, then a second one, until TOKENS.

    A row has SAMPLE_TOKENS at most.
    """
    batches = task.batches(calibration_split(task))
    order = torch.randperm(len(batches), generator=generator).tolist()
    found: list[Call] = []
    tokens = row = 0
    while order:
        remaining = []
        for index in order:
            call = call_of(model, task, batches[index])
            if call.shape is None:
                return found
            if row >= call.shape[0]:
                continue
            found.append(call.cut(slice(row, row + 1), SAMPLE_TOKENS))
            tokens += found[-1].tokens
            if tokens >= TOKENS:
                return found
            remaining.append(index)
        order, row = remaining, row + 1
    return found
