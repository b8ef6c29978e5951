"""Measuring a network on a task, as it is or with its weights rounded into an allocation."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from qslm.allocation import Allocation
from qslm.anatomy import Anatomy, Site, find_anatomy
from qslm.errors import StudyError, TaskError
from qslm.evaluation.evaluation import Evaluation
from qslm.formats import Format
from qslm.progress import SILENT, Progress
from qslm.quantizers import round_site
from qslm.tasks.statistics import interval
from qslm.tasks.task import Losses, Task, as_task


def evaluate(model: nn.Module, task: Any, split: str | None = None, progress: Progress = SILENT) -> Evaluation:
    """Measure a network as it is, in evaluation mode; its mode is given back.

    `task` is a Task, or anything with its two methods (`as_task`). `split` is its own evaluation split when it is not
    given. The footprint is the file that the network was opened from, `model.file_bytes` of `load_model` and
    `load_checkpoint`, else that of the float32 network. Raises TaskError when the network does not suit the task, or
    the split has too little data.
    """
    task = as_task(task)
    opened = getattr(model, "file_bytes", None)
    file_bytes = opened if isinstance(opened, int) else Allocation.float32(find_anatomy(model)).footprint().file
    with evaluation_mode(model):
        return _measured(model, task, split or task.evaluation_split, file_bytes, progress)


class Evaluator:
    """Measures allocations of one network, one after the other.

    The rounded weights are copied into the live parameters; a float original is kept from the moment that its
    site is first written to, so that memory never holds more than the network twice, and is written back by
    `close`, or at the end of a `with`. A site whose format does not change is not rounded again. The network
    is in evaluation mode as long. Rounding is done on the CPU, wherever the network is, so that the same bits
    are packed later.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, task: Task, progress: Progress = SILENT) -> None:
        self.model, self.anatomy, self.task = model, anatomy, task
        self._progress = progress
        self._live = {site.name: _tensor(model, site) for site in anatomy.sites}
        self._originals: dict[str, Tensor] = {}
        self._applied: dict[str, tuple[Format, str]] = {}
        self._mode = evaluation_mode(model)
        self._mode.__enter__()

    def measure(self, allocation: Allocation, split: str) -> Evaluation:
        """What the task measures on a split with this allocation; rounding counts into its seconds.

        Raises FormatError when a weight is not finite or does not fit its format, TaskError as the task does.
        """
        start = time.perf_counter()
        self.apply(allocation)
        return _measured(self.model, self.task, split, allocation.footprint().file, self._progress, start)

    def apply(self, allocation: Allocation) -> None:
        """Give every site the numbers that it stands for in its format, (code - zero) * scale."""
        for site, fmt in allocation.items():
            wanted = (fmt, allocation.quantizer if fmt.is_integer else "")
            if self._applied.get(site.name) != wanted:
                self._write(site, fmt, allocation.quantizer)
                self._applied[site.name] = wanted

    @torch.no_grad()
    def _write(self, site: Site, fmt: Format, quantizer: str) -> None:
        live = self._live[site.name]
        if site.name not in self._originals:
            self._originals[site.name] = live.detach().to("cpu", copy=True)
        rounded = round_site(self._originals[site.name], fmt, quantizer, name=site.name)
        live.copy_(rounded.dequantize())

    @torch.no_grad()
    def restore(self) -> None:
        """Write the float originals back."""
        for name, original in self._originals.items():
            self._live[name].copy_(original)
        self._originals.clear()
        self._applied.clear()

    def close(self) -> None:
        """Give the network back as it was: its weights and its mode."""
        self.restore()
        self._mode.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode, and give every module its own mode back at the end."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def reset_state(model: nn.Module) -> None:
    """Forget the membrane potentials: call `reset()` on every module that has one (spikingjelly's convention).

    A method of that name that needs arguments is something else, and is left alone.
    """
    for module in model.modules():
        reset = getattr(module, "reset", None)
        if callable(reset) and _needs_nothing(reset):
            reset()


def _needs_nothing(method: Callable[..., object]) -> bool:
    try:
        signature(method).bind()
    except (TypeError, ValueError):
        return False
    return True


def _measured(
    model: nn.Module,
    task: Task,
    split: str,
    file_bytes: int,
    progress: Progress,
    start: float | None = None,
) -> Evaluation:
    start = time.perf_counter() if start is None else start
    batches = task.batches(split)
    parts = []
    for batch in progress.track(batches, len(batches), f"{task.name} {split}"):
        reset_state(model)
        with torch.no_grad():
            parts.append(task.losses(model, batch))
        if not isinstance(parts[-1], Losses):
            raise TaskError(f"losses() of {task.name} returned a {type(parts[-1]).__name__}.", "Return qslm.Losses.")
    losses = Losses.concatenate(parts)
    found = interval(task, losses)
    details = task.details(losses, split)
    seconds = time.perf_counter() - start
    return Evaluation(task.metric, found.value, found.low, found.high, losses, file_bytes, seconds, details)


def _tensor(model: nn.Module, site: Site) -> Tensor:
    """The live tensor of a site. Raises StudyError when the network has changed since its anatomy was found."""
    owner, _, name = site.name.rpartition(".")
    try:
        tensor = getattr(model.get_submodule(owner), name)
    except AttributeError:
        tensor = None
    if not isinstance(tensor, Tensor) or tuple(tensor.shape) != site.shape:
        raise StudyError(f"The network has no {site.name} of shape {list(site.shape)}.", "Find its anatomy again.")
    return tensor
