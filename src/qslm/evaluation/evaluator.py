"""Measuring a network on a task, as it is or with its weights rounded into an allocation."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from qslm import _native
from qslm.allocation import Allocation
from qslm.anatomy import Anatomy, Site
from qslm.anatomy.find import find_anatomy
from qslm.errors import StudyError, TaskError
from qslm.evaluation.chain import BlockChain
from qslm.evaluation.evaluation import Evaluation
from qslm.evaluation.parts import Parts, Stop, consecutive
from qslm.evaluation.prefix import PREFIX_BYTES, PrefixCache
from qslm.formats import Format
from qslm.formats.quantized import QuantizedTensor
from qslm.progress import SILENT, Progress
from qslm.quantizers import Inputs, round_site
from qslm.spiking.slot import SpikingSlot
from qslm.tasks.statistics import interval
from qslm.tasks.task import Losses, Task, Units, as_task

GROWTH_BYTES = 2**28  # by which the process may grow before freed memory is given back to the system


def evaluate(model: nn.Module, task: Any, split: str | None = None, progress: Progress = SILENT) -> Evaluation:
    """Measure a network as it is, in evaluation mode; its mode is given back.

    `task` is a Task, or anything with its two methods (`as_task`). `split` is its own evaluation split when it is not
    given. The footprint is the file that the network was opened from, `model.file_bytes` of `load_model` and
    `load_checkpoint`, else that of the float32 network. Raises TaskError when the network does not suit the task, or
    the split has too little data.
    """
    start = time.perf_counter()
    task, anatomy = as_task(task), find_anatomy(model)
    split = split or task.evaluation_split
    opened = getattr(model, "file_bytes", None)
    batches = task.batches(split)
    with evaluation_mode(model):
        tracked = progress.track(batches, len(batches), f"{task.name} {split}")
        losses = Losses.concatenate([measure_losses(model, task, batch) for batch in tracked])
    found = interval(task, losses)
    return Evaluation(
        *(task.metric, found.value, found.low, found.high, losses),
        footprint_file=opened if isinstance(opened, int) else Allocation.float32(anatomy).footprint().file,
        seconds=time.perf_counter() - start,
        details=task.details(losses, split),
        work=len(anatomy.blocks) * losses.tokens,
    )


class Evaluator:
    """Measures allocations of one network, one after the other.

    The rounded weights are copied into the live parameters; a float original is kept from the moment that its
    site is first written to, so that memory never holds more than the network twice, and is written back by
    `close`, or at the end of a `with`. A site whose format does not change is not rounded again. The network
    is in evaluation mode as long. Rounding is done on the CPU, wherever the network is, so that the same bits
    are packed later. `inputs` is what calibrated quantizers look at; `learned`, to which anyone may add, holds what
    reconstruction has rounded.

    Outputs of blocks are kept, `cache_bytes` of them (512 MiB; 0 keeps none), so that an allocation is run only from
    where it differs from an earlier one, with the same bits (`BlockChain`). `work` counts tokens times blocks that
    were forwarded, all in all.
    """

    def __init__(
        self,
        model: nn.Module,
        anatomy: Anatomy,
        task: Task,
        progress: Progress = SILENT,
        *,
        cache_bytes: int = PREFIX_BYTES,
        inputs: Inputs | None = None,
    ) -> None:
        self.model, self.anatomy, self.task, self.inputs = model, anatomy, task, inputs
        self.learned: dict[str, Mapping[str, QuantizedTensor]] = {}
        self.work = 0
        self.chain = BlockChain(model, anatomy, PrefixCache(cache_bytes))
        self._progress = progress
        self._live = {site.name: _tensor(model, site) for site in anatomy.sites}
        slots = {f"{path}.weight": one for path, one in model.named_modules() if isinstance(one, SpikingSlot)}
        self._slots = {name: one for name, one in slots.items() if name in self._live}
        self._originals: dict[str, Tensor] = {}
        self._applied: dict[str, tuple[Format, str]] = {}
        self._batches: dict[str, Sequence[Any]] = {}
        self._places: dict[str, list[Units]] = {}
        self._mode = evaluation_mode(model)
        self._mode.__enter__()

    def measure(
        self, allocation: Allocation, split: str, *, stop: Stop | None = None, known: Evaluation | None = None
    ) -> Evaluation:
        """What the task measures on a split with this allocation; rounding counts into its seconds.

        The batches are run in a random order, the same for all allocations. After each but the last `stop` is asked
        about the losses so far (with their `units`), and ends the evaluation where it says yes. `known` is what an
        earlier evaluation of the same allocation and split measured before it was stopped: its batches are not run
        again. A complete evaluation has the same losses in every case.

        Raises FormatError when a weight is not finite or does not fit its format, StudyError when `known` is of other
        batches, TaskError as the task does.
        """
        if known is not None and known.complete:
            return known
        count = len(self._of(split))
        places = self.places(split) if stop or known else self._places.get(split)
        parts = Parts(self.task, split, count, places, known)
        todo, complete = parts.todo(), True
        before = self.work
        for index in self._progress.track(todo, len(todo), f"{self.task.name} {split}"):
            parts.measured[index] = self.measure_batch(allocation, split, index)
            if stop is not None and index != todo[-1] and stop(parts.losses):
                complete = False
                break
        parts.work = self.work - before
        if split not in self._places and complete:
            self._learn(split, parts.measured)
        return parts.evaluation(allocation.footprint().file, complete)

    def measure_batch(self, allocation: Allocation, split: str, index: int) -> Losses:
        """What the task loses on the batch `index` of a split with this allocation. Raises as `measure` does.

        `self.work` grows by the tokens times the blocks that were forwarded for it.
        """
        self.apply(allocation)
        batch = self._of(split)[index]
        losses, work = self.chain.run(allocation, (split, index), lambda: measure_losses(self.model, self.task, batch))
        self.work += work
        _native.return_freed_memory(GROWTH_BYTES)
        if split in self._places and len(losses.values) != len(self._places[split][index]):
            raise TaskError(
                f"Batch {index} of {self.task.name} {split} has {len(losses.values)} units, it had "
                f"{len(self._places[split][index])}.",
                "Give batches of fixed units.",
            )
        return losses

    def places(self, split: str) -> list[Units]:
        """The places in the split of every batch's units.

        A task that does not tell them (`Task.places`) is run on the whole split, once, unless that was done: the
        evaluation of the baseline does it. What that takes is in `self.work` and in no Evaluation.
        """
        if split not in self._places:
            told = self.task.places(split)
            if told is not None:
                self._places[split] = told
            else:
                batches = [measure_losses(self.model, self.task, batch) for batch in self._of(split)]
                self.work += len(self.anatomy.blocks) * sum(part.tokens for part in batches)
                self._learn(split, dict(enumerate(batches)))
        return self._places[split]

    def _learn(self, split: str, measured: dict[int, Losses]) -> None:
        self._places[split] = consecutive([part for _, part in sorted(measured.items())])

    def _of(self, split: str) -> Sequence[Any]:
        """The batches of a split, made once."""
        if split not in self._batches:
            self._batches[split] = self.task.batches(split)
        return self._batches[split]

    def apply(self, allocation: Allocation) -> None:
        """Give every site the numbers that it stands for in its format, (code - zero) * scale."""
        for site, fmt, quantizer in allocation.choices():
            if self._applied.get(site.name) != (fmt, quantizer):
                self._write(site, fmt, quantizer)
                self._applied[site.name] = fmt, quantizer

    @torch.no_grad()
    def _write(self, site: Site, fmt: Format, quantizer: str) -> None:
        live = self._live[site.name]
        if site.name not in self._originals:
            self._originals[site.name] = live.detach().to("cpu", copy=True)
        original = self._originals[site.name]
        rounded = round_site(original, fmt, quantizer, name=site.name, inputs=self.inputs, learned=self.learned)
        live.copy_(rounded.dequantize())
        if slot := self._slots.get(site.name):
            slot.hold(rounded)

    @torch.no_grad()
    def restore(self) -> None:
        """Write the float originals back."""
        for name, original in self._originals.items():
            self._live[name].copy_(original)
        for slot in self._slots.values():
            slot.release()
        self._originals.clear()
        self._applied.clear()
        self.chain.forget()

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


def measure_losses(model: nn.Module, task: Task, batch: Any) -> Losses:
    """The losses of one batch, from the state of rest."""
    reset_state(model)
    with torch.no_grad():
        found = task.losses(model, batch)
    if not isinstance(found, Losses):
        raise TaskError(f"losses() of {task.name} returned a {type(found).__name__}.", "Return qslm.Losses.")
    return found


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
