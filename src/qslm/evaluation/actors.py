"""A crew of actors on a Ray cluster: the same workers on many machines."""

import contextlib
import io
import os
import socket
from typing import Any

import numpy as np

from qslm.errors import StudyError
from qslm.evaluation.parcel import TensorPickler, write_parcel
from qslm.evaluation.workers import Answer, Crew, Failed, Job, Lost, Ready, Settings, Worker, failure, surroundings


class Actors(Crew):
    """As many actors as the cluster at `address` has CPUs for their threads, or `count` of them.

    `address` is what `ray.init` takes, such as the "HOST:PORT" of the head. Where Ray is connected already, that
    connection is used, and left. The weights are put into the object store once; an actor has a copy of its own to
    round into. Raises StudyError when Ray is not installed or the cluster cannot be reached.
    """

    def __init__(self, content: Any, address: str, settings: Settings, count: int | None = None) -> None:
        self._ray = ray = _import_ray()
        self._settings = settings
        self._connected = not ray.is_initialized()
        self._actors: dict[int, Any] = {}
        self._asked: dict[Any, int] = {}  # what is awaited, and from which worker
        if self._connected:
            _connect(ray, address)
        try:
            self.count = self._size() if count is None else count
            self._settings = settings.shared_by(self.count)
            self._parcel = self._put(content)
            for worker in range(self.count):
                self._start(worker)
        except BaseException:
            self.close()
            raise

    def send(self, worker: int, job: Job) -> None:
        """Give a job to a worker."""
        self._asked[self._actors[worker].answer.remote(job)] = worker

    def wait(self, seconds: float) -> list[tuple[int, Answer]]:
        """What workers answered."""
        if not self._asked:
            return []
        found, _ = self._ray.wait(list(self._asked), timeout=seconds)
        return [(self._asked.pop(reference), self._receive(reference)) for reference in found]

    def replace(self, worker: int) -> None:
        """Start another actor under the number of one that is gone; it waits for a machine that has room."""
        self._end(worker)
        self._start(worker)

    def close(self) -> None:
        """Kill all actors, forget the weights, and leave the cluster if it was entered here."""
        for worker in list(self._actors):
            self._end(worker)
        self._asked.clear()
        self._parcel = None
        if self._connected:
            self._ray.shutdown()

    def _size(self) -> int:
        cpus = self._ray.cluster_resources().get("CPU", 0)
        threads = self._settings.threads
        if cpus < threads:
            raise StudyError(f"The Ray cluster has {cpus:g} CPUs, a worker needs {threads}.", "Start more Ray nodes.")
        return int(cpus // threads)

    def _put(self, content: Any) -> Any:
        stream = io.BytesIO()
        pickled = write_parcel(content, stream, _pickler())
        return self._ray.put((pickled, np.frombuffer(stream.getbuffer(), dtype=np.uint8)))

    def _start(self, worker: int) -> None:
        options = {"num_cpus": self._settings.threads, "max_restarts": 0, "max_task_retries": 0}
        self._actors[worker] = actor = self._ray.remote(**options)(Actor).remote(self._settings)
        self._asked[actor.start.remote(self._parcel)] = worker

    def _end(self, worker: int) -> None:
        self._asked = {reference: asked for reference, asked in self._asked.items() if asked != worker}
        with contextlib.suppress(Exception):  # it, or the whole cluster, is gone
            self._ray.kill(self._actors.pop(worker), no_restart=True)

    def _receive(self, reference: Any) -> Answer:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:  # raised before our code ran
            return failure(error.cause if isinstance(error.cause, Exception) else RuntimeError(str(error)))
        except errors.RayError as error:
            return Lost(str(error).partition("\n")[0])


class Actor:
    """A worker in a process of Ray's."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._worker: Worker | None = None

    def start(self, parcel: tuple[bytes, Any]) -> Answer:
        """Take the network; `parcel` is its pickle and its buffer, which lies in the object store."""
        pickled, floats = parcel
        try:
            self._worker = Worker(pickled, floats, floats.copy(), self._settings)
        except Exception as error:
            return failure(error)
        return Ready(surroundings())

    def answer(self, job: Job) -> Answer:
        """Do a job."""
        if self._worker is None:
            return Failed(RuntimeError("an actor was given a job before it was started"))
        return self._worker.answer(job)


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise StudyError(f"Ray is not installed ({error}).", "Install it: pip install 'qslm[ray]'.") from error
    return ray


def _connect(ray: Any, address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit() and "/" not in host:  # Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise StudyError(
            f"There is no Ray cluster at {address!r}: {str(error).partition(chr(10))[0]}.",
            "Start one: ray start --head --disable-usage-stats. Then give its HOST:PORT.",
        ) from error


def _pickler() -> type[TensorPickler]:
    """Ray's own pickler sends the classes of a script or a notebook too."""
    from ray import cloudpickle

    return type("CloudPickler", (TensorPickler, cloudpickle.Pickler), {})
