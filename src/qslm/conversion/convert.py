"""Conversion of a network's linear layers, a block at a time.

The matrices of a block are rounded by what they see in front of it: the stream of the blocks before it, with their
weights rounded and their activations in float32. So the rounded weights are the same whatever form the activations
take later, and only one block's statistics are in memory. The blocks' streams are: tokens * width * 4 bytes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qslm.anatomy import Anatomy
from qslm.calibration.blocks import Block, chain, streams
from qslm.calibration.calls import Call, pieces
from qslm.errors import CheckpointError, SpikeError, TaskError
from qslm.formats import Format
from qslm.models.padding import Text
from qslm.progress import SILENT, Progress
from qslm.quantizers import InputStatistics, round_site
from qslm.spiking.layer import FLOAT, Activations, RoundedLayer
from qslm.tasks.task import Task

WEIGHTS = Format.parse("int4-sym-row")
TOKENS = 1 << 16  # of calibration text: 64 windows of 1,024
STEP_TOKENS = 1 << 10  # that go through a block at once, or one row
SAMPLE_TOKENS = 1 << 11  # whose activations a form may look at


@dataclass(frozen=True, eq=False)
class Seen:
    """What the layers that read one input see: their matrices (out, in) by path, E[x x^T] and some tokens of x."""

    weights: Mapping[str, Tensor]
    statistics: InputStatistics
    samples: Tensor


Form = Callable[[Seen], Activations]


@dataclass(frozen=True, eq=False)
class Conversion:
    """A converted network: its layers by path, and the forms of their activations by the name of the form.

    quantizer: that rounded the weights.
    """

    model: nn.Module
    quantizer: str
    layers: dict[str, RoundedLayer] = field(default_factory=dict)
    forms: dict[str, dict[str, Activations]] = field(default_factory=dict)

    def use(self, form: str) -> None:
        """Let all layers take a form."""
        for path, layer in self.layers.items():
            layer.activations = self.forms[form][path]


@torch.no_grad()
def convert(
    model: nn.Module,
    anatomy: Anatomy,
    task: Task,
    forms: Mapping[str, Form],
    *,
    weights: Format = WEIGHTS,
    quantizer: str = "gptq",
    tokens: int = TOKENS,
    progress: Progress = SILENT,
) -> Conversion:
    """Replace every linear layer of the attention blocks by integer weights, in place; it takes the first of `forms`.

    The text is about `tokens` tokens of the task's calibration split; positions of padding do not count. Raises
    StudyError where the blocks make no chain, CheckpointError where a block has no linear layers of its own or is not
    in float32, TaskError without text, SpikeError for formats without one scale a row, and what the task, the network,
    the quantizer and the forms raise; the network is then of no use.
    """
    _check_request(model, weights, forms)
    model.eval()
    calls = pieces(model, task, tokens, STEP_TOKENS)
    if not calls:
        raise TaskError(f"The calibration text of {task.name} is empty.", "Give more text.")
    blocks = chain(model, anatomy, calls[0])
    found = Conversion(model, quantizer, forms={name: {} for name in forms})
    stream = list(streams(model, blocks[0], calls))
    for block in progress.track(blocks, len(blocks), "converting the blocks"):
        linear = _linear_layers(block)
        for seen in _seen(block, stream, linear):
            made = {form: _made(make, seen, block) for form, make in forms.items()}
            for path, weight in seen.weights.items():
                name = f"{block.path}.{path}"
                rounded = round_site(weight, weights, quantizer, name=name, inputs={name: seen.statistics})
                found.layers[name] = RoundedLayer(rounded, linear[path].bias, FLOAT)
                block.module.set_submodule(path, found.layers[name])
                for form, activations in made.items():
                    found.forms[form][name] = activations
        stream = [block.run(call) for call in stream]
    found.use(next(iter(forms)))
    seen_tokens = sum(call.tokens for call in calls)
    progress.message(f"converted: {len(found.layers)} layers, by {seen_tokens:,} tokens of calibration text")
    return found


def _check_request(model: nn.Module, weights: Format, forms: Mapping[str, Form]) -> None:
    """Refuse at once what would fail at the first layer."""
    by_rows = weights.granularity == "row" or weights.scale_type == "power"
    if weights.kind != "integer" or not by_rows or not 2 <= weights.bits <= 8:
        raise SpikeError(
            f"Weights in {weights} have not one scale a row, or do not fit into int8.",
            "Round them into symmetric integers of 2 to 8 bits, by rows or by groups that are shifted: int4-sym-row, "
            "int4-sym-g64-p2.",
        )
    if not forms:
        raise SpikeError("There is no form of activations.", "Name one, such as spike counts.")
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise CheckpointError(
                f"{name} is of type {parameter.dtype}.", "Convert a network in float32: model.float()."
            )


def _made(make: Form, seen: Seen, block: Block) -> Activations:
    try:
        return make(seen)
    except SpikeError as error:
        raise SpikeError(f"{block.path}.{next(iter(seen.weights))}: {error.problem}", error.remedy) from error


def _linear_layers(block: Block) -> dict[str, nn.Linear]:
    """By their paths inside a block. Raises CheckpointError where there are none, or one has two paths."""
    modules = block.module.named_modules(remove_duplicate=False)
    found = {path: module for path, module in modules if isinstance(module, nn.Linear)}
    if len(set(map(id, found.values()))) < len(found):
        first = next(path for path, one in found.items() if list(found.values()).count(one) > 1)
        raise CheckpointError(f"{block.path}.{first} stands at several places.", "Give each place a layer of its own.")
    if not found:
        kinds = sorted({type(module).__name__ for module in block.module.modules() if [*module.parameters(False)]})
        raise CheckpointError(
            f"{block.path} has no torch.nn.Linear to convert; what has weights in it is {', '.join(kinds)}.",
            "Write its layers as torch.nn.Linear.",
        )
    return found


def _seen(block: Block, stream: Sequence[Call], linear: Mapping[str, nn.Linear]) -> list[Seen]:
    """What the layers of a block see in its streams, together what several of them read.

    Raises CheckpointError where a layer is not called.
    """
    watch = _Watch(linear)
    with watch.watching():
        for call in stream:
            watch.text = call.text
            block.run(call)
    unused = sorted(linear.keys() - watch.leaders.keys())
    if unused:
        raise CheckpointError(
            f"{block.path} calls none of {', '.join(unused)}, so nothing is known of what they see.",
            "Remove layers that are not used.",
        )
    found = []
    for leader, moment in watch.moments.items():
        weights = {path: linear[path].weight for path, its in watch.leaders.items() if its == leader}
        statistics = InputStatistics(moment / watch.counts[leader], watch.counts[leader])
        found.append(Seen(weights, statistics, torch.cat(watch.samples[leader])))
    return found


class _Watch:
    """Sums of x x^T over the inputs x of layers, at positions of `text`.

    A layer that is called with the tensor of another one follows it.
    """

    def __init__(self, linear: Mapping[str, nn.Linear]) -> None:
        self.linear = linear
        self.text = Text()
        self.leaders: dict[str, str] = {}
        self.moments: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.samples: dict[str, list[Tensor]] = {}
        self._last: dict[str, Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch all calls in the meantime."""
        hooks = [
            layer.register_forward_pre_hook(lambda _, given, path=path: self._add(path, given[0]))
            for path, layer in self.linear.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._last.clear()

    def _add(self, path: str, x: Tensor) -> None:
        leader = next((other for other, last in self._last.items() if last is x), path)
        if self.leaders.setdefault(path, leader) != leader:
            raise CheckpointError(
                f"{path} reads what {self.leaders[path]} reads in one call, and something else in another.",
                "Convert a network whose layers are called in one way.",
            )
        if leader != path:
            return
        self._last[path] = x
        rows = x.detach().flatten(0, -2)[self.text.rows(x)].float()
        product = rows.T @ rows
        self.moments[path] = self.moments[path].add_(product) if path in self.moments else product
        self.counts[path] = self.counts.get(path, 0) + len(rows)
        left = SAMPLE_TOKENS - sum(map(len, self.samples.setdefault(path, [])))
        if left > 0:
            self.samples[path].append(rows[:left].clone())
