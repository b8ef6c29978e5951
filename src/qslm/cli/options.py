"""The options that several verbs share, each defined once."""

import os
from pathlib import Path
from typing import Annotated

import typer

from qslm.errors import QslmError
from qslm.folders import named

Checkpoint = Annotated[
    str,
    typer.Argument(
        help="A .pth, .safetensors or .gguf file, a folder, the name of a shipped network, or a Hub id.",
        show_default=False,
    ),
]


Output = Annotated[
    Path,
    typer.Option("--output", "-o", help="The run folder.", show_default=False, parser=named, metavar="DIRECTORY"),
]
Run = Annotated[Path, typer.Argument(help="The run folder of a study.", show_default=False)]
TaskName = Annotated[
    str,
    typer.Option(
        "--task",
        help="wikitext2, sst2, or your own file: text (perplexity) or labelled (accuracy).",
        show_default=False,
    ),
]
File = Annotated[
    Path | None,
    typer.Option(
        "--file",
        help="Your own data: UTF-8 text for text, lines of sentence<TAB>label for labelled.",
        show_default=False,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="Folder with the published data (or set QSLM_DATA).", show_default=False),
]
Tokenizer = Annotated[
    Path | None,
    typer.Option("--tokenizer", help="tokenizer.json for a checkpoint without one.", show_default=False),
]
BinaryEmbedding = Annotated[
    str,
    typer.Option("--binary-embedding", help="Whether the embedding is binarized: auto, true or false."),
]
Windows = Annotated[
    int | None,
    typer.Option(
        "--windows",
        min=2,
        help="Measure only the first windows of a split; of sentences so many, evenly spread.",
        show_default=False,
    ),
]
SearchWindows = Annotated[
    int | None,
    typer.Option(
        "--windows",
        min=2,
        help="Search on the first windows of the text only; of sentences on so many, evenly spread.",
        show_default=False,
    ),
]
ReportWindows = Annotated[
    int | None,
    typer.Option("--report-windows", min=2, help="The same for the report.", show_default=False),
]
Context = Annotated[
    int | None,
    typer.Option("--context", min=2, help="Tokens of a window; the model's by default.", show_default=False),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads of the computation; all cores by default.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]

MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        help="Size of the model file at most: 120MiB, 30MB, or 14% of the float32 tensors.",
        show_default=False,
    ),
]
MaxDrop = Annotated[
    str | None,
    typer.Option("--max-drop", help="Points of accuracy that may be lost: 2.", show_default=False),
]
MaxRise = Annotated[
    str | None,
    typer.Option("--max-rise", help="Rise of perplexity that is allowed: 1.0 or 2%.", show_default=False),
]
Decision = Annotated[
    str,
    typer.Option(
        "--decision",
        help="What must keep the limit: the one-sided 95 % bound, or the measured point as in the paper.",
    ),
]
Prefer = Annotated[
    str | None,
    typer.Option(
        "--prefer",
        help="Which accepted candidate is selected: smallest, or by score; score where --mu is given.",
        show_default=False,
    ),
]
Mu = Annotated[
    float | None,
    typer.Option("--mu", help="Of the score: points of the metric per unit of memory ratio.", show_default=False),
]


THREADS_PER_CORE = 4  # that may be asked for; a mistyped 100000 would bring the machine down


def use_threads(count: int | None) -> None:
    """Fix how many threads PyTorch computes with; None leaves its choice. Raises QslmError when they are too many."""
    most = THREADS_PER_CORE * (os.cpu_count() or 1)
    if count is not None and count > most:
        raise QslmError(f"{count:,} threads are too many for this machine.", f"Give --threads {most} at most.")
    if count is not None:
        import torch

        torch.set_num_threads(count)
