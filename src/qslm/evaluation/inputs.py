"""What the matrices of the float network see on calibration text, for the quantizers that weigh their errors by it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qslm.anatomy import Anatomy
from qslm.errors import ArtifactError, TaskError
from qslm.evaluation.calibration import calibration_split, linear_layers
from qslm.evaluation.evaluator import evaluation_mode, measure_losses
from qslm.formats import canonical_json
from qslm.formats.container import write
from qslm.formats.reading import metadata_of, parse_object, read_header, read_tensors, reading
from qslm.progress import SILENT, Progress
from qslm.quantizers import Inputs, InputStatistics
from qslm.tasks.task import Task

TOKENS = 1 << 15  # of calibration text, about
SEED = 0


@torch.no_grad()
def collect_inputs(model: nn.Module, anatomy: Anatomy, task: Task, progress: Progress = SILENT) -> Inputs:
    """E[x x^T] of every linear layer's inputs x, by the site of its matrix, over about TOKENS tokens.

    The text is whole batches of the task's calibration split in random order, always the same. Positions of padding
    count too: the network sees them. Raises TaskError where the text is too little for any statistics, and what the
    task and the network raise.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    layers = list(linear_layers(model, anatomy))
    batches, tokens = task.batches(calibration_split(task)), 0
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(SEED)).tolist()
    with evaluation_mode(model), _watched(layers, sums, counts):
        for index in progress.track(order, len(order), "what every matrix sees"):
            tokens += measure_losses(model, task, batches[index]).tokens
            if tokens >= TOKENS:
                break
    if layers and not sums:
        raise TaskError(f"The calibration text of {task.name} is empty.", "Give more text.")
    return {name: InputStatistics(total / counts[name], counts[name]) for name, total in sums.items()}


@contextmanager
def _watched(
    layers: Sequence[tuple[str, nn.Linear]], sums: dict[str, Tensor], counts: dict[str, int]
) -> Iterator[None]:
    def adder(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            seen = arguments[0].detach().flatten(0, -2).to("cpu", torch.float32)
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
    moments = {name: found.moment.contiguous() for name, found in inputs.items()}
    return write(path, moments, canonical_json({"counts": counts, "meaning": meaning}))


class StoredInputs(Mapping[str, InputStatistics]):
    """The statistics in a file, each read when it is asked for. Raises ArtifactError where the file is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        header = read_header(path)
        with reading(path):
            content = parse_object(metadata_of(header), "The metadata")
            counts, meaning = content.get("counts"), content.get("meaning")
            whole = isinstance(counts, dict) and all(type(count) is int and count > 0 for count in counts.values())
            if not whole or not isinstance(meaning, str):
                raise ArtifactError("The metadata has not its fields: counts, meaning.", "Remove the file.")
        self.meaning: str = meaning
        self._counts: dict[str, int] = content["counts"]

    def __getitem__(self, name: str) -> InputStatistics:
        count = self._counts[name]
        (found,) = read_tensors(self.path, [[(name, "F32", ())]])
        return InputStatistics(found[name], count)

    def __contains__(self, name: object) -> bool:
        return name in self._counts

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)
