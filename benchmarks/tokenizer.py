"""Encoding and loading: the tokenizer in C beside the package tokenizers, one thread each, in turns in one run.

    python benchmarks/tokenizer.py [TOKENIZER ...] [--data DIR] [--turns N] [--json]

TOKENIZER: tokenizer.json files; the shipped one without. The text is the test split of WikiText-2, whole for the one
in C, and for the package in the pieces of 64 thousand characters that this project gives it, or whole, whichever is
faster, without offsets. `rows`: milliseconds of each, medians, and the medians of their ratios turn by turn.
`same`: whether the ids are equal. --quick encodes an eighth of the text.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command
import tokenizers

from qslm import _native
from qslm.data.tokenizer import encode_text, parse_tokenizer
from qslm.data.wikitext2 import load_wikitext2
from qslm.loading.locating import SHIPPED


def timed(call: Callable[[], Any]) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def measure(path: Path, text: str, turns: int) -> dict[str, Any]:
    """One row: load and encode by both, `turns` times after one that warms up."""
    file = path.read_bytes()
    ours, peer = _native.Tokenizer(file), parse_tokenizer(file.decode(), str(path))
    pieces, data = list(encode_text(peer, text).pieces), text.encode()
    calls: dict[str, Callable[[], Any]] = {
        "load": lambda: _native.Tokenizer(file),
        "peer_load": lambda: parse_tokenizer(file.decode(), str(path)),
        "encode": lambda: ours.encode(data),
        "peer_whole": lambda: peer.encode_batch_fast([text], add_special_tokens=False),
        "peer_pieces": lambda: peer.encode_batch_fast(pieces, add_special_tokens=False),
    }
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns + 1):
        for name, call in calls.items():
            spent[name].append(timed(call))
    milliseconds = {name: statistics.median(found[1:]) for name, found in spent.items()}
    best = min("peer_whole", "peer_pieces", key=lambda name: milliseconds[name])
    ids = ours.encode(data).tolist()
    return {
        "tokenizer": str(path),
        "tokens": len(ours),
        "arena_bytes": ours.arena_bytes,
        "text_bytes": len(data),
        "ids": len(ids),
        "same": ids == peer.encode(text, add_special_tokens=False).ids,
        "milliseconds": milliseconds,
        "encode_ratio": ratio(spent[best], spent["encode"]),
        "load_ratio": ratio(spent["peer_load"], spent["load"]),
    }


def ratio(peer: list[float], ours: list[float]) -> float:
    """The median, turn by turn, without the first."""
    return statistics.median(p / o for p, o in zip(peer[1:], ours[1:], strict=True))


def show(result: dict[str, Any]) -> None:
    """A line a tokenizer."""
    print(f"tokenizers {result['tokenizers']}, {result['turns']} turns")
    for row in result["rows"]:
        spent = row["milliseconds"]
        print(
            f"{row['tokenizer']}: {row['tokens']:,} tokens, {row['arena_bytes'] / 1e6:.2f} MB; ids "
            + (f"equal, {row['ids']:,}" if row["same"] else "NOT EQUAL")
            + f"; load {spent['load']:.1f} ms ({row['load_ratio']:.1f} times as fast), "
            f"encode {spent['encode']:.1f} ms, {row['text_bytes'] / spent['encode'] / 1e3:.1f} MB/s "
            f"({row['encode_ratio']:.1f} times as fast)"
        )


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("tokenizer", type=Path, nargs="*", default=[SHIPPED / "spikegpt-mini" / "tokenizer.json"])
    parser.add_argument("--data", type=Path, help="folder with wikitext-2; QSLM_DATA without")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="an eighth of the text")
    arguments: argparse.Namespace = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with command.listening(parser) as progress:
        text = load_wikitext2(arguments.data, progress).report
        text = text[: len(text) // 8] if arguments.quick else text
        rows = [measure(path, text, arguments.turns) for path in arguments.tokenizer]
    command.tell({"tokenizers": tokenizers.__version__, "turns": arguments.turns, "rows": rows}, arguments, show)


if __name__ == "__main__":
    main()
