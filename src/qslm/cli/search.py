"""`qslm search`: fit a checkpoint into a budget."""

from typing import TYPE_CHECKING, Annotated, cast

import typer

from qslm.cli.budget import check_texts, make_budget
from qslm.cli.opening import open_task
from qslm.cli.options import (
    BinaryEmbedding,
    Checkpoint,
    Context,
    Data,
    Decision,
    File,
    Json,
    MaxDrop,
    MaxMemory,
    MaxRise,
    Mu,
    Output,
    Prefer,
    ReportWindows,
    SearchWindows,
    TaskName,
    Threads,
    Tokenizer,
    use_threads,
)
from qslm.cli.progress import Listener
from qslm.cli.storage import (
    DEFAULT_PRECISIONS,
    Groups,
    Signs,
    Symmetric,
    Vectors,
    parse_precisions,
    templates,
    vector_format,
)
from qslm.cli.study import conduct, finish
from qslm.folders import check_ahead

if TYPE_CHECKING:
    from qslm.search.options import Order as BlockOrder

READ_BY_SPIKES = "8 6 5 4 3 2"  # bits of weights that spike counts are multiplied with
RECONSTRUCTION_WINDOWS = 512  # of training text, of which other searches look at 128

Precisions = Annotated[
    str | None,
    typer.Option(
        "--precisions",
        help="Bit widths to try, from the highest to the lowest.",
        show_default=f"{DEFAULT_PRECISIONS}; with --activations from 8",
    ),
]
Quantizers = Annotated[
    str,
    typer.Option(
        "--quantizers",
        help="How weights are rounded: clip, hqq, minmax as in the paper, or by calibration text gptq, awq, awq_gptq; "
        "or several.",
    ),
]
Activations = Annotated[
    str | None,
    typer.Option(
        "--activations",
        help="Bits of the spike counts that a network of qslm spike --float-weights reads, such as 4; or several for "
        "tiered, which lowers them in turns with the weights.",
        show_default=False,
    ),
]
Strategy = Annotated[
    str,
    typer.Option("--strategy", help="knapsack; or, to compare: tiered, literal, uniform, greedy, random, tpe, nsga2."),
]
Order = Annotated[str, typer.Option("--order", help="Order of the blocks in tiered: sensitivity, or network.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the strategies that draw.")]
Early = Annotated[
    bool, typer.Option("--early/--whole", help="End an evaluation once its decision is foretold, or run all of each.")
]
MaxEvaluations = Annotated[
    int | None, typer.Option("--max-evaluations", min=1, help="End with the best so far.", show_default=False)
]
MaxSeconds = Annotated[
    float | None, typer.Option("--max-seconds", min=0, help="End with the best so far.", show_default=False)
]
Reconstruct = Annotated[
    int,
    typer.Option(
        "--reconstruct", min=0, metavar="N", help="Learn the rounding of N finalists as a whole, block by block."
    ),
]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes that measure in parallel.")]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray", metavar="ADDRESS", help="Measure on this Ray cluster: auto, or HOST:PORT.", show_default=False
    ),
]


def search(
    checkpoint: Checkpoint,
    task: TaskName,
    output: Output,
    max_memory: MaxMemory = None,
    max_drop: MaxDrop = None,
    max_rise: MaxRise = None,
    decision: Decision = "bound",
    prefer: Prefer = None,
    mu: Mu = None,
    file: File = None,
    data: Data = None,
    tokenizer: Tokenizer = None,
    precisions: Precisions = None,
    activations: Activations = None,
    groups: Groups = "row",
    symmetric: Symmetric = False,
    quantizers: Quantizers = "clip",
    vectors: Vectors = "float32",
    signs: Signs = True,
    strategy: Strategy = "knapsack",
    order: Order = "sensitivity",
    seed: Seed = 0,
    early: Early = True,
    reconstruct: Reconstruct = 0,
    max_evaluations: MaxEvaluations = None,
    max_seconds: MaxSeconds = None,
    workers: Workers = 1,
    ray: Ray = None,
    windows: SearchWindows = None,
    report_windows: ReportWindows = None,
    context: Context = None,
    binary_embedding: BinaryEmbedding = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Search the bit allocation that keeps a budget, pack the model, and write the report.

    A search that was stopped goes on with the same command; qslm status RUN says how far it is.

    Examples: [bold]qslm search spikegpt-mini --task wikitext2 --max-rise 1.0 -o runs/first[/bold]

    [bold]qslm search my.pth --task labelled --file reviews.tsv --max-memory 14% --max-drop 2 -o runs/own[/bold]

    [bold]qslm search my.pth --task text --file my.txt --max-rise 2% --max-seconds 3600 --workers 4 -o runs/hour[/bold]

    [bold]qslm search spikegpt-mini --task wikitext2 --max-rise 1.0 --strategy tiered --whole -o runs/paper[/bold]

    [bold]qslm search spikegpt-mini --task wikitext2 --max-rise 5% --quantizers "gptq clip hqq" --group "row 64 32"
    --reconstruct 2 -o runs/small[/bold]

    [bold]qslm search mini-slots --task wikitext2 --max-rise 2% --strategy tiered --activations "8 6 4"
    -o runs/spikes[/bold]
    """
    check_texts(task, max_memory, max_drop, max_rise)
    check_ahead(output, "study")
    from qslm.loading.outline import read_outline
    from qslm.search import Options

    usual = DEFAULT_PRECISIONS if activations is None else READ_BY_SPIKES
    options = Options(
        precisions=parse_precisions(usual if precisions is None else precisions),
        activations=() if activations is None else parse_precisions(activations, "--activations"),
        templates=templates(groups, symmetric or activations is not None),
        vectors=vector_format(vectors),
        signs=signs,
        quantizers=tuple(quantizers.replace(",", " ").split()),
        order=cast("BlockOrder", order),
        strategy=strategy,
        seed=seed,
        early=early,
        reconstruct=reconstruct,
        max_evaluations=max_evaluations,
        max_seconds=max_seconds,
    )
    outline = read_outline(checkpoint, binary_embedding)
    budget = make_budget(outline.anatomy, task, max_memory, max_drop, max_rise, decision=decision, prefer=prefer, mu=mu)
    options.check_possible(outline.anatomy, budget, outline.file_bytes)
    use_threads(threads)
    with Listener() as progress:
        loaded, made = open_task(
            checkpoint,
            task,
            tokenizer=tokenizer,
            binary_embedding=binary_embedding,
            data=data,
            file=file,
            context=context,
            windows=_windows(task, windows, report_windows, reconstruct),
            progress=progress,
        )
        selection = conduct(loaded, made, budget, options, output, progress, workers=workers, ray=ray)
    finish(selection, as_json)


def _windows(task: str, search: int | None, report: int | None, reconstruct: int) -> dict[str, int] | None:
    """How many windows or sentences each split has; where it does not say, as many as the task takes."""
    calibrate = RECONSTRUCTION_WINDOWS if reconstruct and task == "wikitext2" else None
    given = {"calibrate": calibrate, "search": search, "report": report}
    return {split: count for split, count in given.items() if count} or None
