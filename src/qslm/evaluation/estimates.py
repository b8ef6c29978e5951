"""What every format at every site is expected to lose, from one forward and backward pass of the float network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qslm.anatomy import Anatomy
from qslm.errors import QslmError
from qslm.evaluation.evaluator import evaluation_mode, reset_state
from qslm.formats import Format
from qslm.progress import SILENT, Progress
from qslm.quantizers import round_site
from qslm.search.costs import Costs
from qslm.tasks.task import Task

TOKENS = 4096  # tokens of calibration text, about
SAMPLE_TOKENS = 512  # of one sample, which bounds the memory of the backward pass
SEED = 0
BACKWARD = 2  # a backward pass counts as two forward passes


@dataclass(frozen=True, eq=False)
class Estimate:
    """The expected costs, the samples that they are from, and the work: tokens times blocks, backward as two."""

    costs: Costs
    samples: int
    tokens: int
    work: int


def estimate_costs(
    model: nn.Module,
    anatomy: Anatomy,
    task: Task,
    formats: Sequence[Format],
    quantizer: str,
    progress: Progress = SILENT,
) -> Estimate:
    """Expect of site i in format f the loss c(i, f) = 1/2 sum_j F_j (w_j - w_j(f))^2, in nats a prediction.

    F is the diagonal of the Fisher information, E[g^2] over samples and over labels drawn from the network's own
    predictions, so that c is the second-order term of the KL divergence to the float network (LeCun et al. 1990,
    "Optimal brain damage"; Kirkpatrick et al. 2017). Through spikes g is the surrogate gradient: an estimate, which
    proposes and never decides. The sum over sites leaves interactions out.

    The text is the task's split "calibrate", or where it has none the first batches of "search". Where the network
    gives no logits `(..., classes)`, or nothing has a gradient, c follows from the bits alone (`Costs.by_bits`).
    Weights, mode and global random state are left as they were. Takes the memory of the weights a second time.
    """
    sites = [site for site in anatomy.sites if not site.is_vector]
    weights = dict(model.named_parameters(remove_duplicate=False))
    fisher = _fisher(model, {site.name: weights[site.name] for site in sites}, task, progress)
    work = (1 + BACKWARD) * fisher.tokens * len(anatomy.blocks)
    fallback = Costs.by_bits([(site.name, site.numel) for site in sites], formats)
    values: dict[tuple[str, Format], float] = {}
    for site in progress.track(sites, len(sites), "rounding every site at every width"):
        weight = weights[site.name].detach().cpu()
        least = 0.0
        for fmt in sorted(formats, key=lambda one: one.bits, reverse=True):
            error = round_site(weight, fmt, quantizer, name=site.name).dequantize().sub_(weight).square_()
            cost = float(error.mul_(fisher.sums[site.name]).sum(dtype=torch.float64)) / (2 * max(fisher.predictions, 1))
            least = max(least, cost or fallback.of(site.name, fmt))
            values[site.name, fmt] = least
    return Estimate(Costs(values), fisher.samples, fisher.tokens, work)


@dataclass(frozen=True, eq=False)
class _Sample:
    """What the network is called with for one sample: positional and keyword arguments, and how many tokens."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    tokens: int


@dataclass(frozen=True, eq=False)
class _Fisher:
    """The sum of the squared gradient of each site over the samples, and what it was summed over."""

    sums: dict[str, Tensor]
    samples: int
    tokens: int
    predictions: int


def _fisher(model: nn.Module, live: Mapping[str, nn.Parameter], task: Task, progress: Progress) -> _Fisher:
    sums = {name: torch.zeros(weight.shape) for name, weight in live.items()}
    wanted = {weight: weight.requires_grad for weight in model.parameters()}
    generator = torch.Generator().manual_seed(SEED)
    samples = tokens = predictions = 0
    hooks = []
    try:
        with evaluation_mode(model):
            drawn = _samples(model, task)
            for weight in wanted:
                weight.requires_grad_(any(weight is one for one in live.values()))
            hooks = [weight.register_post_accumulate_grad_hook(_adder(sums[name])) for name, weight in live.items()]
            for sample in progress.track(drawn, len(drawn), "what to expect"):
                logits = _logits(model, sample)
                if logits is None:
                    break
                labels = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
                F.cross_entropy(logits, labels.to(logits.device), reduction="sum").backward()
                samples, tokens, predictions = samples + 1, tokens + sample.tokens, predictions + len(logits)
    finally:
        for hook in hooks:
            hook.remove()
        for weight, value in wanted.items():
            weight.grad = None
            weight.requires_grad_(value)
    return _Fisher(sums, samples, tokens, predictions)


def _logits(model: nn.Module, sample: _Sample) -> Tensor | None:
    """The logits of a sample as (predictions, classes) that can be differentiated; None where there are none."""
    reset_state(model)
    with torch.enable_grad():
        logits = model(*sample.arguments, **sample.keywords)
    if not isinstance(logits, Tensor) or logits.dim() < 2 or not logits.requires_grad:
        return None
    return logits.flatten(0, -2).float()


def _adder(total: Tensor) -> Callable[[Tensor], None]:
    """A hook that adds the square of a weight's gradient to `total` and drops the gradient."""

    def add(weight: Tensor) -> None:
        if weight.grad is not None:
            total.add_(weight.grad.detach().to(total).square_())
            weight.grad = None

    return add


class _Called(Exception):  # noqa: N818 - it is no error: it ends a call whose arguments are all that is wanted
    """The network was called."""


def _samples(model: nn.Module, task: Task) -> list[_Sample]:
    """The first samples of the calibration text, one row of a batch each, cut to SAMPLE_TOKENS."""
    found: list[_Sample] = []
    for batch in _calibration(task):
        arguments, keywords = _arguments(model, task, batch)
        ids = next((one for one in (*arguments, *keywords.values()) if isinstance(one, Tensor) and one.dim() > 1), None)
        if ids is None:
            break
        for row in range(len(ids)):
            if sum(sample.tokens for sample in found) >= TOKENS:
                return found
            cut = _Cut(row, tuple(ids.shape[:2]))
            named = {name: cut(value) for name, value in keywords.items()}
            found.append(_Sample(tuple(map(cut, arguments)), named, min(ids.shape[1], SAMPLE_TOKENS)))
    return found


def _calibration(task: Task) -> Sequence[Any]:
    try:
        return task.batches("calibrate")
    except (QslmError, KeyError):
        return task.batches("search")


def _arguments(model: nn.Module, task: Task, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the task calls the network with for a batch."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def look(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        seen.append((arguments, keywords))
        raise _Called

    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        task.losses(model, batch)
    except _Called:
        pass
    finally:
        handle.remove()
    return seen[0] if seen else ((), {})


@dataclass(frozen=True)
class _Cut:
    """Takes one row, and the first tokens of it, of everything that has the shape of the ids."""

    row: int
    shape: tuple[int, ...]

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or tuple(value.shape[:2]) != self.shape:
            return value
        return value[self.row : self.row + 1, :SAMPLE_TOKENS].clone()
