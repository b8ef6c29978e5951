"""`qslm bench`: how fast the native engine runs a packed model."""

import os
from dataclasses import asdict
from typing import Annotated

import typer

from qslm.cli.options import Json, Threads
from qslm.cli.output import print_json, print_table
from qslm.cli.progress import Listener


def bench(
    model: Annotated[str, typer.Argument(help="The folder of a packed model.", show_default=False)],
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens to decode, each turn.")] = 64,
    prompt: Annotated[int, typer.Option("--prompt", min=1, help="Tokens of the prompt to read, each turn.")] = 256,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure tokens per second, beside how fast this machine reads memory, in turns.

    Example: [bold]qslm bench runs/demo/artifact --threads 2[/bold]
    """
    from qslm.runtime.speed import measure
    from qslm.units import format_bytes

    with Listener() as progress:
        found = measure(
            model,
            threads=threads or len(os.sched_getaffinity(0)),
            tokens=tokens,
            prompt=prompt,
            progress=progress,
        )
    if as_json:
        print_json({"model": model} | asdict(found))
        return
    resident = "unknown" if found.resident_bytes is None else format_bytes(found.resident_bytes)
    rows = [
        ["decoding", f"{found.decoding:,.0f} tokens/s"],
        [f"prefill of {found.prompt}", f"{found.prefill:,.0f} tokens/s"],
        ["weights read a token", format_bytes(found.bytes_per_token)],
        ["read bandwidth", f"{found.bandwidth / 1e9:.1f} GB/s"],
        ["share of the bandwidth", f"{100 * found.share:.0f} %"],
        ["weights", format_bytes(found.file_bytes)],
        ["memory beside them", format_bytes(found.memory_bytes)],
        ["resident, with what was read", resident],
        ["loaded in", f"{1e3 * found.load_seconds:.1f} ms"],
        ["threads", str(found.threads)],
        ["kernel", found.kernel],
    ]
    print_table(["measure", "value"], rows, model)
