"""What the matrices of the float network see on calibration text, for the quantizers that weigh their errors by it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qslm.anatomy import Anatomy
from qslm.calibration.layers import linear_layers
from qslm.calibration.text import shuffled_batches
from qslm.errors import ArtifactError, TaskError
from qslm.evaluation.evaluator import evaluation_mode, measure_losses
from qslm.formats import canonical_json
from qslm.formats.container import write
from qslm.formats.reading import metadata_of, parse_object, read_header, read_tensors, reading
from qslm.models.folds import Fold
from qslm.models.padding import Text, text_of
from qslm.progress import SILENT, Progress
from qslm.quantizers import Inputs, InputStatistics, folds_of, search_exponents
from qslm.tasks.task import Task

TOKENS = 1 << 15  # of calibration text, about


@torch.no_grad()
def collect_inputs(model: nn.Module, anatomy: Anatomy, task: Task, progress: Progress = SILENT) -> Inputs:
    """E[x x^T] of every linear layer's inputs x, by the site of its matrix, over about TOKENS tokens.

    The text is whole batches of the task's calibration split in random order, always the same; positions of padding do
    not count. Where the network says that scales fold (`folds_of`), the readers of a fold get their exponents, found
    with the float weights: what a site is rounded to depends on no other. Raises TaskError where the text is too little
    for any statistics, and what the task and the network raise.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    layers = list(linear_layers(model, anatomy))
    batches, tokens = shuffled_batches(task), 0
    with evaluation_mode(model), text_of(model) as text, _watched(layers, text, sums, counts):
        for batch in progress.track(batches, len(batches), "what every matrix sees"):
            tokens += measure_losses(model, task, batch).tokens
            if tokens >= TOKENS:
                break
    if layers and not tokens:
        raise TaskError(f"The calibration text of {task.name} is empty.", "Give more text.")
    if layers and not sums:
        raise TaskError(
            f"{type(model).__name__} calls none of its linear layers, so nothing is known of what they see.",
            "Round it by a quantizer that needs no text: clip.",
        )
    moments = {name: total / counts[name] for name, total in sums.items()}
    folds = [one for one in folds_of(model, anatomy) if moments.keys() >= set(one.consumers)]
    exponents: dict[str, Tensor | None] = {}
    for one in progress.track(folds, len(folds), "how inputs are scaled"):
        exponents |= dict.fromkeys(one.consumers, _exponents(model, one, moments))
    return {name: InputStatistics(moment, counts[name], exponents.get(name)) for name, moment in moments.items()}


def _exponents(model: nn.Module, fold: Fold, moments: Mapping[str, Tensor]) -> Tensor | None:
    """The exponents (in,) of the columns of all consumers of a fold; None where scales do no good."""
    weights = [model.get_parameter(name).detach().cpu() for name in fold.consumers]
    return search_exponents(weights, [moments[name] for name in fold.consumers], fold.degree)


@contextmanager
def _watched(
    layers: Sequence[tuple[str, nn.Linear]], text: Text, sums: dict[str, Tensor], counts: dict[str, int]
) -> Iterator[None]:
    def adder(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            x = arguments[0].detach()
            seen = x.flatten(0, -2)[text.rows(x)].to("cpu", torch.float32)
            product = seen.T @ seen
            sums[name] = sums[name].add_(product) if name in sums else product
            counts[name] = counts.get(name, 0) + len(seen)

        return add

    hooks = [layer.register_forward_pre_hook(adder(name)) for name, layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def write_inputs(path: Path, inputs: Inputs, meaning: str) -> str:
    """Write statistics and what they are of into a file; its sha256. Raises ArtifactError."""
    counts = {name: found.count for name, found in inputs.items()}
    tensors = {name: found.moment.contiguous() for name, found in inputs.items()}
    scaled = {name: found.exponents for name, found in inputs.items() if found.exponents is not None}
    tensors |= {_of_exponents(name): exponents for name, exponents in scaled.items()}
    return write(path, tensors, canonical_json({"counts": counts, "meaning": meaning, "scaled": sorted(scaled)}))


def _of_exponents(name: str) -> str:
    """The name of the tensor that holds the exponents of a site's columns."""
    return f"{name}.exponents"


class StoredInputs(Mapping[str, InputStatistics]):
    """The statistics in a file, each read when it is asked for. Raises ArtifactError where the file is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        header = read_header(path)
        with reading(path):
            content = parse_object(metadata_of(header), "The metadata")
            counts, meaning, scaled = (content.get(field) for field in ("counts", "meaning", "scaled"))
            whole = isinstance(counts, dict) and all(type(count) is int and count > 0 for count in counts.values())
            if not whole or not isinstance(meaning, str) or not isinstance(scaled, list):
                raise ArtifactError("The metadata has not its fields: counts, meaning, scaled.", "Remove the file.")
        self.meaning: str = meaning
        self._counts: dict[str, int] = content["counts"]
        self._scaled: list[object] = content["scaled"]

    def __getitem__(self, name: str) -> InputStatistics:
        count = self._counts[name]
        stored = [(name, "F32", ()), (_of_exponents(name), "I8", ())][: 1 + (name in self._scaled)]
        (found,) = read_tensors(self.path, [stored])
        return InputStatistics(found[name], count, found.get(_of_exponents(name)))

    def __contains__(self, name: object) -> bool:
        return name in self._counts

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)
