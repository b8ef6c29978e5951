"""A crew of processes on this machine, which share the float weights in memory."""

import contextlib
import mmap
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import DupFd
from typing import Any, BinaryIO, cast

from qslm.evaluation.parcel import write_parcel
from qslm.evaluation.workers import Answer, Crew, Job, Lost, Ready, Settings, Worker, failure, surroundings

SPAWN = multiprocessing.get_context("spawn")  # a fork of a process that has threads may hang


class Processes(Crew):
    """`count` spawned processes.

    `content` is (network, anatomy, task). The weights lie in a file that has no name, so that nothing stays
    behind however this process ends; the workers end with it. Ctrl-C does not reach them: it is this process
    that ends them. As with every spawned process, a script that makes one stands under
    `if __name__ == "__main__":`.
    """

    def __init__(self, content: Any, count: int, settings: Settings) -> None:
        self.count = count
        self._settings = settings.shared_by(count)
        self._memory = _nameless_file()
        self._workers: dict[int, tuple[Any, Connection]] = {}
        try:
            pickled = write_parcel(content, self._memory)
            self._parcel = _Parcel(self._memory.fileno(), self._memory.tell(), len(pickled))
            self._memory.write(pickled)
            self._memory.flush()
            for worker in range(count):
                self._start(worker)
        except BaseException:
            self.close()
            raise

    def send(self, worker: int, job: Job) -> None:
        """Give a job to a worker; a broken pipe is found by `wait`."""
        with contextlib.suppress(OSError):
            self._workers[worker][1].send(job)

    def wait(self, seconds: float) -> list[tuple[int, Answer]]:
        """What workers answered."""
        numbers = {connection: worker for worker, (_, connection) in self._workers.items()}
        heard = [numbers[cast(Connection, connection)] for connection in wait(list(numbers), seconds)]
        return [(worker, self._receive(worker)) for worker in heard]

    def replace(self, worker: int) -> None:
        """Start another process under the number of one that is gone."""
        self._end(worker)
        self._start(worker)

    def close(self) -> None:
        """Kill all processes and give the memory back."""
        for process, _ in self._workers.values():
            process.kill()
        for worker in list(self._workers):
            self._end(worker)
        self._memory.close()

    def _start(self, worker: int) -> None:
        here, there = SPAWN.Pipe()
        resource_tracker.ensure_running()  # which lets interrupts through again where the first process starts it
        try:
            with _interrupts_blocked():
                process = SPAWN.Process(target=_serve, args=(there, self._parcel, self._settings), daemon=True)
                process.start()
                self._workers[worker] = process, here
        finally:
            there.close()

    def _end(self, worker: int) -> None:
        process, connection = self._workers.pop(worker)
        connection.close()
        process.kill()
        process.join()
        process.close()

    def _receive(self, worker: int) -> Answer:
        process, connection = self._workers[worker]
        try:
            return cast(Answer, connection.recv())
        except (EOFError, OSError):
            process.join()
            return Lost(f"process {process.pid} ended with status {process.exitcode}")


@dataclass(frozen=True)
class _Parcel:
    """A parcel in a file that a spawned process gets as its own: tensors first, then the pickle, from `start` on.

    So the process is sent a few hundred bytes, which a pipe holds: what is larger blocks for ever where the process
    dies before it reads.
    """

    file: int
    start: int
    size: int

    def __reduce__(self) -> tuple[Any, ...]:
        return _taken, (DupFd(self.file), self.start, self.size)


def _taken(duplicate: Any, start: int, size: int) -> _Parcel:
    return _Parcel(cast(int, duplicate.detach()), start, size)


def _nameless_file() -> BinaryIO:
    """Memory on Linux, where /dev/shm may be small (64 MB in a container); elsewhere a temporary file."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("qslm-weights"), "w+b")  # noqa: PTH123
    return cast(BinaryIO, tempfile.TemporaryFile())


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Hold SIGINT back; a process started meanwhile never gets one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, parcel: _Parcel, settings: Settings) -> None:
    """The life of a worker process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # whoever asked has gone
        try:
            floats = mmap.mmap(parcel.file, 0, access=mmap.ACCESS_READ)
            own = mmap.mmap(parcel.file, 0, access=mmap.ACCESS_COPY)
            worker = Worker(floats[parcel.start : parcel.start + parcel.size], floats, own, settings)
        except Exception as error:
            connection.send(failure(error))
            return
        connection.send(Ready(surroundings()))
        while True:
            connection.send(worker.answer(connection.recv()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
