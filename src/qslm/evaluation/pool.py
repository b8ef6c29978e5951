"""Measuring allocations by a crew of workers, with the numbers that one process gives."""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self

import torch
from torch import nn

from qslm.allocation import Allocation
from qslm.anatomy import Anatomy
from qslm.errors import StudyError
from qslm.evaluation.actors import Actors
from qslm.evaluation.evaluation import Evaluation
from qslm.evaluation.parts import Parts, consecutive
from qslm.evaluation.prefix import PREFIX_BYTES
from qslm.evaluation.processes import Processes
from qslm.evaluation.workers import (
    Answer,
    Crew,
    Done,
    Failed,
    Job,
    Lost,
    Ready,
    Settings,
    refuse_other_surroundings,
    surroundings,
)
from qslm.progress import SILENT, Progress
from qslm.quantizers import Inputs
from qslm.tasks.task import Losses, Task, Units

DEATHS = 3  # in a row on one batch, or at the start
PATIENCE = 600.0  # seconds without any worker before it is called off
LISTEN = 1.0  # seconds between two looks at the clock


class Queue:
    """Hands jobs to the workers of a crew, and those of a worker that is lost to another one.

    A batch has a home, the worker `index % count`: its prefix cache knows that batch. A worker without jobs of its
    own takes the oldest of another one. What is dropped while a worker is at it is not waited for.
    """

    def __init__(self, crew: Crew, threads: int, progress: Progress) -> None:
        self._crew, self._progress = crew, progress
        self._wanted = surroundings() | {"threads": threads}
        self._idle: set[int] = set()
        self._waiting: list[int] = []  # numbers of jobs, the oldest first
        self._jobs: dict[int, Job] = {}
        self._busy: dict[int, int] = {}  # worker: number
        self._answers: dict[int, Done | Failed] = {}
        self._deaths: Counter[int | None] = Counter()  # of a job, or at the start
        self._last = 0

    @property
    def is_hungry(self) -> bool:
        """Whether workers would soon have nothing to do."""
        return len(self._waiting) < self._crew.count

    def put(self, job: Job) -> int:
        """Add a job; its number."""
        self._last += 1
        self._jobs[self._last] = job
        self._waiting.append(self._last)
        return self._last

    def take(self, number: int) -> Done:
        """Wait for a job to be done. Raises what it raised, or StudyError when it kills its workers."""
        silence = 0.0
        while number not in self._answers:
            self._hand_out()
            found = self._crew.wait(LISTEN)
            for worker, answer in found:
                self._hear(worker, answer)
            alone = not found and not self._idle and not self._busy
            silence = silence + LISTEN if alone else 0.0
            if silence > PATIENCE:
                raise StudyError(f"No worker started in {PATIENCE:.0f} s.", "Look at the machines, and go on later.")
        answer = self._answers.pop(number)
        del self._jobs[number]
        if isinstance(answer, Failed):
            raise answer.error
        return answer

    def drop(self, numbers: Iterable[int]) -> None:
        """Forget jobs, whatever has become of them."""
        forgotten = set(numbers)
        self._waiting = [number for number in self._waiting if number not in forgotten]
        for number in forgotten:
            self._jobs.pop(number, None)
            self._answers.pop(number, None)
            self._deaths.pop(number, None)

    def _hand_out(self) -> None:
        for worker in sorted(self._idle):
            if not self._waiting:
                return
            own = (number for number in self._waiting if self._jobs[number].index % self._crew.count == worker)
            number = next(own, self._waiting[0])
            self._waiting.remove(number)
            self._idle.remove(worker)
            self._busy[worker] = number
            self._crew.send(worker, self._jobs[number])

    def _hear(self, worker: int, answer: Answer) -> None:
        number = self._busy.pop(worker, None)
        self._idle.discard(worker)
        match answer:
            case Lost(reason):
                self._lose(worker, number, reason)
            case Ready(found):
                refuse_other_surroundings(found, self._wanted)
                self._deaths.pop(None, None)
                self._idle.add(worker)
            case Failed(error) if number is None:
                raise error
            case Done() | Failed():
                self._idle.add(worker)
                if number in self._jobs:
                    self._answers[number] = answer

    def _lose(self, worker: int, number: int | None, reason: str) -> None:
        """Replace a worker that is gone; its job, if somebody still wants it, is the next one."""
        self._deaths[number] += 1
        if self._deaths[number] >= DEATHS:
            where = "at the start" if number not in self._jobs else f"at batch {self._jobs[number].index}"
            raise StudyError(
                f"{DEATHS} workers in a row ended {where}; the last one: {reason}.",
                "Mostly the memory does not suffice: take fewer workers, or look at the system's log.",
            )
        self._progress.message(f"worker {worker} is gone ({reason}); another one takes its place")
        if number in self._jobs:
            self._waiting.insert(0, number)
        self._crew.replace(worker)


class Pool:
    """Measures allocations of one network as an `Evaluator` does, by the workers of a crew.

    The batches of an evaluation go to the workers in their fixed order, and what comes back is put together in that
    order, so that the numbers do not depend on who was first. Whoever asks to stop is asked in that order too; what
    workers had measured beyond that is thrown away and is in no evaluation's `work`. The network itself is not
    written to: the crew holds it as it was when the crew was made.
    """

    def __init__(self, crew: Crew, anatomy: Anatomy, task: Task, threads: int, progress: Progress = SILENT) -> None:
        self.anatomy, self.task = anatomy, task
        self._crew, self._progress = crew, progress
        self._queue = Queue(crew, threads, progress)
        self._places: dict[str, list[Units]] = {}

    def measure(
        self,
        allocation: Allocation,
        split: str,
        *,
        stop: Callable[[Losses], bool] | None = None,
        known: Evaluation | None = None,
    ) -> Evaluation:
        """What `Evaluator.measure` gives, to the bit.

        Raises what a worker raised, in the order of the batches, and StudyError when batches kill their workers.
        """
        if known is not None and known.complete:
            return known
        if stop is not None or known is not None:
            self._learn_places(split)
        parts = self._parts(split, known)
        return self._merge(parts, self._put(allocation, parts), allocation, stop)

    def measure_many(self, allocations: Iterable[Allocation], split: str) -> Iterator[Evaluation]:
        """The complete evaluations of independent allocations, in their order, each as soon as it is there.

        Workers go on with the next allocations meanwhile.
        """
        begun: deque[tuple[Allocation, Parts, dict[int, int]]] = deque()
        try:
            for allocation in allocations:
                parts = self._parts(split, None)
                begun.append((allocation, parts, self._put(allocation, parts)))
                while begun and not self._queue.is_hungry:
                    allocation, parts, numbers = begun.popleft()
                    yield self._merge(parts, numbers, allocation, None)
            while begun:
                allocation, parts, numbers = begun.popleft()
                yield self._merge(parts, numbers, allocation, None)
        finally:
            for _, _, numbers in begun:
                self._queue.drop(numbers.values())

    def close(self) -> None:
        """End the workers at once."""
        self._crew.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _parts(self, split: str, known: Evaluation | None) -> Parts:
        """An evaluation of which nothing is measured yet."""
        return Parts(self.task, split, len(self.task.batches(split)), self._places.get(split), known)

    def _learn_places(self, split: str) -> None:
        """Find out the places of every batch's units; a task that does not tell them is measured whole once."""
        if split not in self._places:
            told = self.task.places(split)
            if told is None:
                floats, parts = Allocation.float32(self.anatomy), self._parts(split, None)
                self._merge(parts, self._put(floats, parts), floats, None)
            else:
                self._places[split] = told

    def _put(self, allocation: Allocation, parts: Parts) -> dict[int, int]:
        """Hand over the batches that are to be measured; the number of each one's job, in their order."""
        text = allocation.to_json()
        return {index: self._queue.put(Job(text, parts.split, index)) for index in parts.todo()}

    def _merge(
        self,
        parts: Parts,
        numbers: dict[int, int],
        allocation: Allocation,
        stop: Callable[[Losses], bool] | None,
    ) -> Evaluation:
        """Take the jobs of an evaluation in their order, and forget those after a stop."""
        split, left = parts.split, len(numbers)
        try:
            for index in self._progress.track(numbers, left, f"{self.task.name} {split}"):
                done = self._queue.take(numbers[index])
                parts.measured[index] = done.losses
                parts.work += done.work
                left -= 1
                if left and stop is not None and stop(parts.losses):
                    break
        finally:
            self._queue.drop(numbers.values())
        if not left and split not in self._places:
            self._places[split] = consecutive([part for _, part in sorted(parts.measured.items())])
        return parts.evaluation(allocation.footprint().file, complete=not left)


def make_pool(
    model: nn.Module,
    anatomy: Anatomy,
    task: Task,
    progress: Progress = SILENT,
    *,
    workers: int | None = None,
    ray: str | None = None,
    threads: int | None = None,
    cache_bytes: int = PREFIX_BYTES,
    inputs: Inputs | None = None,
) -> Pool:
    """A pool of `workers` processes of this machine, or, where `ray` is given, of actors on that Ray cluster.

    The network has to be as it is measured: float, on the CPU. On a cluster `workers` is by default as many as it
    has room for. `threads` are those of each worker, by default as many as this process uses, since with them the
    numbers are those of this process to the bit. `cache_bytes` are shared out among the workers. `inputs`
    is what calibrated quantizers look at.

    Raises StudyError when network or task cannot be sent, Ray is missing, or the cluster cannot be reached.
    """
    threads = threads or torch.get_num_threads()
    content = model, anatomy, task, inputs
    settings = Settings(threads, cache_bytes)
    count = 1 if workers is None else workers
    if ray is None and count * threads > (cpus := os.cpu_count() or 1):
        progress.message(
            f"{count} workers of {threads} threads are more than the {cpus} CPUs: a smaller OMP_NUM_THREADS is faster "
            "(but gives other last bits)."
        )
    crew = Processes(content, count, settings) if ray is None else Actors(content, ray, settings, workers)
    return Pool(crew, anatomy, task, threads, progress)
