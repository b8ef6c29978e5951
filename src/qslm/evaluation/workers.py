"""Who runs the batches of evaluations when it is not this process: what a worker is, and what a crew of them does."""

import pickle
import platform
import traceback
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from qslm.allocation import Allocation
from qslm.errors import QslmError, StudyError
from qslm.evaluation.evaluator import Evaluator
from qslm.evaluation.parcel import read_parcel
from qslm.tasks.task import Losses


@dataclass(frozen=True)
class Settings:
    """How workers compute: with so many threads each, and keeping so many bytes of block outputs.

    The number of threads decides the last bits of what is measured: it has to be that of the process that one
    compares with.
    """

    threads: int
    cache_bytes: int

    def shared_by(self, count: int) -> "Settings":
        """The settings of each of `count` workers: each keeps outputs for its own batches only. Raises StudyError."""
        if count < 1:
            raise StudyError(f"{count} workers measure nothing.", "Give 1 or more.")
        return Settings(self.threads, self.cache_bytes // count)


@dataclass(frozen=True)
class Job:
    """One batch to measure: an allocation as its text, a split, and which of the split's batches."""

    allocation: str
    split: str
    index: int


@dataclass(frozen=True)
class Ready:
    """A worker holds the network; `surroundings` is what its numbers depend on beside what it was sent."""

    surroundings: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Done:
    """A job is done; `work` is the tokens times blocks that were forwarded for it."""

    losses: Losses
    work: int


@dataclass(frozen=True, eq=False)
class Failed:
    """A job, or the start of a worker, raised an error."""

    error: Exception


@dataclass(frozen=True)
class Lost:
    """A worker is gone, and its job with it; `reason` says how, as far as that is known."""

    reason: str


Answer = Ready | Done | Failed | Lost


class Crew(ABC):
    """Workers by number, from 0 to `count - 1`; each answers `Ready` once, then every job that it is sent."""

    count: int

    @abstractmethod
    def send(self, worker: int, job: Job) -> None:
        """Give a job to a worker that has none; one that is gone answers `Lost`."""

    @abstractmethod
    def wait(self, seconds: float) -> Sequence[tuple[int, Answer]]:
        """What workers answered; nothing after so many seconds without an answer."""

    @abstractmethod
    def replace(self, worker: int) -> None:
        """Start another worker under the number of one that is gone."""

    @abstractmethod
    def close(self) -> None:
        """End all workers at once, and leave nothing behind."""


class Worker:
    """Holds the network once in memory of its own, and measures batches of it.

    Its float originals stay in the shared buffer, where they are only read.
    """

    def __init__(self, pickled: bytes, floats: Any, own: Any, settings: Settings) -> None:
        """Take a parcel of (network, anatomy, task, inputs): `floats` is its buffer, `own` a copy to be written to."""
        torch.set_num_threads(settings.threads)
        model, anatomy, task, _ = read_parcel(pickled, own)
        originals, _, _, inputs = read_parcel(pickled, floats)
        self._evaluator = _SharingEvaluator(model, anatomy, task, cache_bytes=settings.cache_bytes, inputs=inputs)
        self._evaluator.share(originals.state_dict(keep_vars=True))
        self._allocation = lru_cache(maxsize=1)(lambda text: Allocation.from_json(anatomy, text))

    def answer(self, job: Job) -> Answer:
        """What the job gives, or the error that it raises."""
        before = self._evaluator.work
        try:
            losses = self._evaluator.measure_batch(self._allocation(job.allocation), job.split, job.index)
            return Done(losses, self._evaluator.work - before)
        except Exception as error:
            return failure(error)


class _SharingEvaluator(Evaluator):
    """An Evaluator whose float originals lie elsewhere, so that it makes no copies of them."""

    def share(self, state: dict[str, torch.Tensor]) -> None:
        """Take the originals of all sites from a state dict."""
        self._originals = {site.name: state[site.name].detach() for site in self.anatomy.sites}


def failure(error: Exception) -> Failed:
    """An error as it travels: with the place where it was raised, if it is none of ours.

    One that does not come through a pickle travels as a RuntimeError with its text.
    """
    place = "In a worker:\n" + "".join(traceback.format_tb(error.__traceback__)).rstrip()
    try:
        error = pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    if not isinstance(error, QslmError):
        error.add_note(place)
    return Failed(error)


def surroundings() -> dict[str, Any]:
    """What the bits of a measured number depend on beside network, task and allocation."""
    try:
        ours = version("qslm")
    except PackageNotFoundError:
        ours = "unknown"
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {"qslm": ours, "torch": torch.__version__, "processor": processor, "threads": torch.get_num_threads()}


def refuse_other_surroundings(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise StudyError when a worker would give other bits than this process."""
    differences = [f"its {name} is {found.get(name)}, here it is {ours}" for name, ours in wanted.items()]
    differences = [text for text, name in zip(differences, wanted, strict=True) if found.get(name) != wanted[name]]
    if differences:
        raise StudyError(
            f"A worker would not measure what this process does: {'; '.join(differences)}.",
            "Give every machine the same versions and the same kind of processor.",
        )
