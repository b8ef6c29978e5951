"""Matrix times vector from packed bytes: share of the read bandwidth out of cache, and time beside onnxruntime.

Bandwidth, kernel and peer are measured in turns within one run; ratios and shares are medians over the turns. The peer
is MatMulNBits at accuracy_level 4 (8-bit activations, as here), its best setting: `pip install onnxruntime onnx`. Both
round the vector within the time. `ratio` is the peer's time divided by ours, with the peer's 8 bits beside our 5 and 6
and its 4 bits beside our 3, as it has no other widths. `computing_microseconds` is what the same product takes where an
eighth of its rows, which stays in a nearer cache, is multiplied eight times, in the fastest turn; `share_of_limit` is
our speed beside the slower of that and of reading memory: where cores are slow and memory is fast, computing is the
limit.

The second part multiplies by columns: time and bytes against the share of inputs that are not zero. There `ratio` is
the time by tiles divided by that by columns, and `share_of_dense_bytes` the time in which memory gives all bytes of
the matrix divided by that by columns: where it is above 1, all bytes could not even be read so fast.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from command import parser, tell
from training import processor

from qslm import _native
from qslm.formats import Format
from qslm.formats.dtypes import code_dtype, scale_dtype
from qslm.formats.quantized import QuantizedTensor
from qslm.runtime.matrix import packed_matrix, round_tokens

GROUP = 128
CACHE = 32 << 20  # bytes: matrices out of cache take four times as many
PEER_BITS = {8: 8, 6: 8, 5: 8, 4: 4, 3: 4, 2: 2}
PAUSE = 0.002  # seconds, for threads that still spin
PART = 8  # the share of the rows, over one, that stays in cache when a product is computed again and again


@dataclass(frozen=True)
class Case:
    """A shape (rows, columns), how often it is there, and where: `cached` or in memory."""

    rows: int
    columns: int
    threads: int
    cached: bool

    def matrices(self, bits: int) -> int:
        """How many take their turns: four in cache, else so many that none is left there."""
        return 4 if self.cached else -(-4 * CACHE // (self.rows * self.columns * bits // 8))


CASES = [Case(4096, 4096, 2, False), Case(768, 3072, 1, True), Case(768, 3072, 2, True)]


def random_tensor(rows: int, columns: int, bits: int) -> QuantizedTensor:
    """Codes at random, which take as long as any others."""
    format, generator = Format.parse(f"int{bits}-sym-g{GROUP}"), torch.Generator().manual_seed(bits)
    codes = torch.randint(format.lowest, format.highest + 1, (rows, columns), generator=generator)
    scales = torch.rand(format.scale_shape(rows, columns), generator=generator) + 0.5
    return QuantizedTensor(format, (rows, columns), codes.to(code_dtype(format)), scales.to(scale_dtype(format)))


def stored_bytes(tensor: QuantizedTensor) -> int:
    """Bytes of codes and scales."""
    return sum(part.nbytes for part in tensor.stored("w").values())


class Ours:
    """Copies of one matrix, multiplied one after the other."""

    def __init__(self, tensor: QuantizedTensor, copies: int, threads: int, *, by_columns: bool = False) -> None:
        self.matrices = [packed_matrix(tensor, by_columns=by_columns) for _ in range(copies)]
        self.threads = _native.Threads(threads)
        self.y = np.empty((copies, tensor.shape[0]), np.float32)

    def run(self, x: np.ndarray) -> None:
        _native.multiply_in_turn(self.matrices, x[0], self.y, self.threads)

    def repeat(self, x: np.ndarray, times: int) -> None:
        for _ in range(times):
            self.run(x)


class Peer:
    """The same number of MatMulNBits nodes in one graph of onnxruntime."""

    def __init__(self, rows: int, columns: int, bits: int, copies: int, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        options.add_session_config_entry("session.force_spinning_stop", "1")  # when a run is over, not within it
        model = graph(rows, columns, bits, copies)
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.binding = self.session.io_binding()
        for i in range(copies):
            self.binding.bind_output(f"y{i}", "cpu")

    def run(self, x: np.ndarray) -> None:
        self.binding.bind_cpu_input("x", x)
        self.session.run_with_iobinding(self.binding)


def graph(rows: int, columns: int, bits: int, copies: int) -> bytes:
    """An ONNX model of products of one vector x (1, columns) with so many matrices of their own."""
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(bits)
    shape = (rows, columns // GROUP, GROUP * bits // 8)
    scales = generator.random(rows * columns // GROUP, np.float32)
    nodes, values = [], [numpy_helper.from_array(scales, "scales")]
    told: dict[str, Any] = {
        "K": columns,
        "N": rows,
        "bits": bits,
        "block_size": GROUP,
        "accuracy_level": 4,
        "domain": "com.microsoft",
    }
    for i in range(copies):
        values.append(numpy_helper.from_array(generator.integers(0, 256, shape, np.uint8), f"w{i}"))
        nodes.append(helper.make_node("MatMulNBits", ["x", f"w{i}", "scales"], [f"y{i}"], **told))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, columns])
    y = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [1, rows]) for i in range(copies)]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_model(helper.make_graph(nodes, "products", [x], y, values), opset_imports=opsets, ir_version=10)
    content: bytes = made.SerializeToString()
    return content


def seconds(call: Callable[[], Any], inner: int) -> float:
    """Of one call, on the mean of a few after one that is not counted."""
    time.sleep(PAUSE)
    call()
    start = time.perf_counter()
    for _ in range(inner):
        call()
    return (time.perf_counter() - start) / inner


def in_turns(calls: Mapping[str, Callable[[], Any]], turns: int, inner: int) -> dict[str, list[float]]:
    """Seconds of every call, turn by turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            times[name].append(seconds(call, inner))
    return times


def median_ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def products(case: Case, bits: int, turns: int, words: np.ndarray, *, peer: bool) -> list[dict[str, Any]]:
    """Our row and, where it has this width, the peer's."""
    tensor, copies = random_tensor(case.rows, case.columns, bits), case.matrices(bits)
    x = np.random.default_rng(0).normal(size=(1, case.columns)).astype(np.float32)
    ours, threads = Ours(tensor, copies, case.threads), _native.Threads(case.threads)
    calls: dict[str, Callable[[], Any]] = {
        "reading": lambda: _native.sum_words(words, threads),
        "qslm": lambda: ours.run(x),
    }
    if peer:
        other = Peer(case.rows, case.columns, PEER_BITS[bits], copies, case.threads)
        calls["onnxruntime"] = lambda: other.run(x)
    part = Ours(random_tensor(case.rows // PART, case.columns, bits), 1, case.threads)
    calls["computing"] = partial(part.repeat, x, PART)
    times = in_turns(calls, turns, 8 if case.cached else 1)
    size = stored_bytes(tensor) * copies
    shape: dict[str, Any] = {"shape": f"{case.rows} x {case.columns}", "group": GROUP, "threads": case.threads}
    row: dict[str, Any] = {"who": "qslm", "kernel": _native.kernels()[0], **shape, "bits": bits}
    row["microseconds"] = 1e6 * statistics.median(times["qslm"]) / copies
    row["share_of_bandwidth"] = (
        None if case.cached else size / words.nbytes * median_ratio(times["reading"], times["qslm"])
    )
    reading = [0.0 if case.cached else size / words.nbytes * one for one in times["reading"]]
    fastest = min(times["computing"])
    row["computing_microseconds"] = 1e6 * fastest
    row["share_of_limit"] = median_ratio([max(one, copies * fastest) for one in reading], times["qslm"])
    row["ratio"] = median_ratio(times["onnxruntime"], times["qslm"]) if peer else None
    row["read_gigabytes_per_second"] = words.nbytes / statistics.median(times["reading"]) / 1e9
    if not peer or PEER_BITS[bits] != bits:
        return [row]
    beside: dict[str, Any] = {"who": "onnxruntime", "kernel": "MatMulNBits, accuracy_level 4", **shape, "bits": bits}
    beside["microseconds"] = 1e6 * statistics.median(times["onnxruntime"]) / copies
    share = size / words.nbytes * median_ratio(times["reading"], times["onnxruntime"])
    return [row, beside | {"share_of_bandwidth": None if case.cached else share, "ratio": 1.0}]


def densities(rows: int, columns: int, bits: int, turns: int, words: np.ndarray) -> list[dict[str, Any]]:
    """By columns, at several shares of inputs that are not zero; `ratio` is the time by tiles divided by it."""
    tensor, generator = random_tensor(rows, columns, bits), np.random.default_rng(0)
    copies = -(-4 * CACHE // (rows * columns * bits // 8))
    tiles, found = Ours(tensor, copies, 2), Ours(tensor, copies, 2, by_columns=True)
    threads = _native.Threads(2)
    made = []
    for density in (1.0, 0.5, 0.3, 0.2, 0.1, 0.03, 0.01):
        x = (generator.normal(size=(1, columns)) * (generator.random((1, columns)) < density)).astype(np.float32)
        fires = int(np.count_nonzero(round_tokens(x)[0]))
        calls: dict[str, Callable[[], Any]] = {
            "reading": lambda: _native.sum_words(words, threads),
            "tiles": partial(tiles.run, x),
            "columns": partial(found.run, x),
        }
        times = in_turns(calls, turns, 1)
        row: dict[str, Any] = {
            "who": "qslm",
            "kernel": f"{_native.kernels()[0]} by columns",
            "shape": f"{rows} x {columns}",
        }
        row |= {"group": GROUP, "threads": 2, "bits": bits, "density": fires / columns}
        row["bytes"] = fires * rows * bits // 8 + tensor.stored("w")["w.scales"].nbytes
        row["microseconds"] = 1e6 * statistics.median(times["columns"]) / copies
        share = copies * stored_bytes(tensor) / words.nbytes
        row["share_of_dense_bytes"] = share * median_ratio(times["reading"], times["columns"])
        made.append(row | {"ratio": median_ratio(times["tiles"], times["columns"])})
    return made


def measure(turns: int, *, peer: bool) -> dict[str, Any]:
    """All rows, and what they were measured with."""
    words = np.arange(CACHE // 2, dtype=np.uint64)  # four times the cache
    rows = [
        row
        for case, bits in itertools.product(CASES, PEER_BITS)
        for row in products(case, bits, turns, words, peer=peer)
    ]
    rows += densities(768, 3072, 4, turns, words)
    return {"processor": processor(), "turns": turns, "peer": version(peer=peer), "rows": rows}


def version(*, peer: bool) -> str:
    """Of the peer, or why there is none."""
    if not peer:
        return "onnxruntime is missing: pip install onnxruntime onnx"
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def peer_is_there() -> bool:
    try:
        import onnx
        import onnxruntime
    except ImportError:
        return False
    return bool(onnx and onnxruntime)


def show(found: dict[str, Any]) -> None:
    print(f"{found['processor']}, {found['peer']}, medians of {found['turns']} turns")
    for row in found["rows"]:
        line = f"{row['who']:12} {row['kernel']:30} {row['shape']:11} {row['threads']} threads {row['bits']} bits"
        line += f" {row['microseconds']:8.1f} us"
        line += f", {100 * row['share_of_bandwidth']:.0f} % of bandwidth" if row.get("share_of_bandwidth") else ""
        if "share_of_limit" in row:
            line += (
                f", in cache {row['computing_microseconds']:.1f} us, {100 * row['share_of_limit']:.0f} % of the limit"
            )
        if "density" in row:
            line += f", density {row['density']:.2f}, {row['bytes']:,} bytes"
            line += f", {row['share_of_dense_bytes']:.2f} times as fast as all bytes could be read"
        print(line + (f", ratio {row['ratio']:.2f}" if row["ratio"] else ""))


def main() -> None:
    program: argparse.ArgumentParser = parser(__doc__)
    program.add_argument("--turns", type=int, default=30, help="of bandwidth, kernel and peer")
    program.add_argument("--quick", action="store_true", help="7 turns")
    arguments = program.parse_args()
    found = measure(7 if arguments.quick else arguments.turns, peer=peer_is_there())
    tell(found, arguments, show)


if __name__ == "__main__":
    main()
