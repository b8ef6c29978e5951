"""How fast the native engine runs a model, beside how fast this machine reads memory."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qslm import _native
from qslm.progress import SILENT, Progress
from qslm.runtime.engine import Engine

BUFFER = 1 << 28  # bytes that are read to measure the bandwidth: more than caches hold
TURNS = 9

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Speed:
    """Medians over turns of reading memory, decoding and prefilling on the same threads.

    decoding, prefill: tokens per second, one at a time and `prompt` together. bytes_per_token: of weights that a
    decoded token reads at most: all but the embedding's, of which it reads a row. share: of the read bandwidth that
    bytes_per_token times decoding is, in the median of the turns. resident_bytes: by which the process has grown, file
    pages included; None where there is no /proc.
    """

    decoding: float
    prefill: float
    prompt: int
    bytes_per_token: int
    bandwidth: float  # bytes per second
    share: float
    file_bytes: int
    memory_bytes: int
    resident_bytes: int | None
    load_seconds: float
    threads: int
    kernel: str


def measure(
    folder: Path | str,
    *,
    threads: int,
    tokens: int = 64,
    prompt: int = 256,
    turns: int = TURNS,
    progress: Progress = SILENT,
) -> Speed:
    """Measure a packed language model of `folder`. Raises as `Engine` does, and TaskError for a classifier."""
    words = np.zeros(BUFFER // 8, np.uint64)
    words[:] = 1  # pages of its own
    pool = _native.Threads(threads)
    before, start = _resident(), time.perf_counter()
    engine = Engine(folder, threads=threads)
    loaded = time.perf_counter() - start
    ids = [int(one) for one in np.random.default_rng(0).integers(engine.vocabulary_size, size=max(prompt, tokens))]
    reading, decoding, prefill = [], [], []
    for _ in progress.track(range(turns + 1), turns + 1, "speed"):
        reading.append(BUFFER / _seconds(lambda: _native.sum_words(words, pool)))
        engine.reset()
        prefill.append(prompt / _seconds(lambda: engine.advance(ids[:prompt])))
        decoding.append(tokens / _seconds(lambda: _decode(engine, ids[:tokens])))
    reading, decoding, prefill = reading[1:], decoding[1:], prefill[1:]  # the first of each warms up
    size = engine.bytes_per_token
    after = _resident()
    return Speed(
        decoding=statistics.median(decoding),
        prefill=statistics.median(prefill),
        prompt=prompt,
        bytes_per_token=size,
        bandwidth=statistics.median(reading),
        share=statistics.median(size * one / other for one, other in zip(decoding, reading, strict=True)),
        file_bytes=engine.weight_bytes,
        memory_bytes=engine.memory_bytes,
        resident_bytes=None if before is None or after is None else after - before,
        load_seconds=loaded,
        threads=threads,
        kernel=_native.kernels()[0],
    )


def _decode(engine: Engine, ids: list[int]) -> None:
    for one in ids:
        engine.advance([one])


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _resident() -> int | None:
    if not _STATUS.exists():
        return None
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
