"""`qslm search`: fit a checkpoint into a budget."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qslm.cli.budget import check_texts, make_budget, print_selection
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
    Prefer,
    TaskName,
    Threads,
    Tokenizer,
    use_threads,
)
from qslm.cli.output import print_json
from qslm.cli.progress import Listener
from qslm.cli.storage import (
    DEFAULT_PRECISIONS,
    Group,
    Signs,
    Symmetric,
    Vectors,
    parse_precisions,
    template,
    vector_format,
)

if TYPE_CHECKING:
    from qslm.budget import Budget
    from qslm.study import Options, Selection

Precisions = Annotated[str, typer.Option("--precisions", help="Bit widths to try, from the highest to the lowest.")]
Quantizer = Annotated[
    str, typer.Option("--quantizer", help="How weights are rounded: clip, or minmax as in the paper.")
]
SearchWindows = Annotated[
    int | None,
    typer.Option("--windows", min=2, help="Search on the first windows of the text only.", show_default=False),
]
ReportWindows = Annotated[
    int | None,
    typer.Option("--report-windows", min=2, help="Report on the first windows of the text only.", show_default=False),
]
Order = Annotated[str, typer.Option("--order", help="Order of the blocks: sensitivity, or network.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Evaluations at most.", show_default=False)]


def search(
    checkpoint: Checkpoint,
    task: TaskName,
    output: Annotated[Path, typer.Option("--output", "-o", help="The run folder.", show_default=False)],
    max_memory: MaxMemory = None,
    max_drop: MaxDrop = None,
    max_rise: MaxRise = None,
    decision: Decision = "bound",
    prefer: Prefer = "smallest",
    mu: Mu = 0.0,
    file: File = None,
    data: Data = None,
    tokenizer: Tokenizer = None,
    precisions: Precisions = DEFAULT_PRECISIONS,
    group: Group = "row",
    symmetric: Symmetric = False,
    quantizer: Quantizer = "clip",
    vectors: Vectors = "float32",
    signs: Signs = True,
    order: Order = "sensitivity",
    limit: Limit = None,
    windows: SearchWindows = None,
    report_windows: ReportWindows = None,
    context: Context = None,
    binary_embedding: BinaryEmbedding = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Search the bit allocation that keeps a budget, pack the model, and write the report.

    A search that was stopped goes on with the same command.

    Examples: [bold]qslm search spikegpt-mini --task wikitext2 --max-rise 1.0 -o runs/first[/bold]

    [bold]qslm search my.pth --task labelled --file reviews.tsv --max-memory 14% --max-drop 2 -o runs/own[/bold]
    """
    check_texts(max_memory, max_drop, max_rise)
    use_threads(threads)
    from qslm.anatomy import find_anatomy
    from qslm.loading import load_checkpoint
    from qslm.study import Options
    from qslm.tasks import make_task

    storing: Any = (parse_precisions(precisions), template(group, symmetric), vector_format(vectors), signs)
    going: Any = (quantizer, order, limit)
    options = Options(*storing, *going)
    with Listener() as progress:
        opening: Any = {"tokenizer": tokenizer, "binary_embedding": binary_embedding, "progress": progress}
        loaded = load_checkpoint(checkpoint, **opening)
        anatomy = find_anatomy(loaded.model)
        choices = {"decision": decision, "prefer": prefer, "mu": mu}
        budget = make_budget(anatomy, max_memory, max_drop, max_rise, **choices)
        options.check_possible(anatomy, budget)
        limits = {split: n for split, n in (("search", windows), ("report", report_windows)) if n is not None}
        data_options: Any = {"data": data, "file": file, "context": context, "windows": limits or None}
        made = make_task(task, tokenizer=loaded.tokenizer, config=loaded.config, progress=progress, **data_options)
        selection = conduct(loaded, made, budget, options, output, progress)
    finish(selection, as_json)


def conduct(
    loaded: Any, task: Any, budget: "Budget", options: "Options", output: Path, progress: Listener
) -> "Selection":
    """Search, and write the report, also where nothing was accepted."""
    from qslm.errors import StudyError
    from qslm.study import search as run_search

    try:
        selection = run_search(loaded, task, budget=budget, output=output, progress=progress, **vars(options))
    except StudyError:
        _report_of_failure(output, progress)
        raise
    leave_report(output)
    return selection


def leave_report(output: Path) -> None:
    """Write the report of a finished study, and the command that made it."""
    from qslm.report import COMMAND, write_report

    (output / COMMAND).write_text(shlex.join(["qslm", *sys.argv[1:]]) + "\n", encoding="utf-8")
    write_report(output)


def finish(selection: "Selection", as_json: bool, sentences: Mapping[str, str] | None = None) -> None:
    """Print the answer, where it lies, and what the network writes before and after, by name."""
    run = selection.run
    paths = {"model": selection.artifact, "report": run / "report.html", "figures": run / "figures"}
    sentences = sentences or {}
    if as_json:
        shown = {name: str(path) for name, path in paths.items()}
        print_json({**selection.to_dict(), "paths": shown, **sentences})
        return
    print_selection(selection)
    for name, text in [*paths.items(), *sentences.items()]:
        print(f"{name:<8} {text}")


def _report_of_failure(output: Path, progress: Listener) -> None:
    """Where evaluations were made and none was accepted, their report still helps."""
    from qslm.errors import QslmError
    from qslm.report import write_report

    try:
        progress.message(f"report of what was measured: {write_report(output)}")
    except QslmError:
        return  # there is nothing to report yet; the study's own error says why
