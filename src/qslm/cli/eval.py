"""`qslm eval`: measure a checkpoint or a packed model on a task."""

import math
from typing import Annotated, Any

import typer

from qslm.cli.opening import open_task
from qslm.cli.options import (
    BinaryEmbedding,
    Checkpoint,
    Context,
    Data,
    File,
    Json,
    TaskName,
    Threads,
    Tokenizer,
    Windows,
    use_threads,
)
from qslm.cli.output import print_json, print_table
from qslm.cli.progress import Listener
from qslm.errors import SpikeError

Watch = Annotated[
    bool,
    typer.Option(
        "--watch", help="Let static saliencies of spiking layers (qslm spike --static) follow text of another kind."
    ),
]


def evaluate(
    checkpoint: Checkpoint,
    task: TaskName,
    file: File = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="calibrate, search, report, or all of a file.", show_default=False),
    ] = None,
    data: Data = None,
    tokenizer: Tokenizer = None,
    windows: Windows = None,
    context: Context = None,
    watch: Watch = False,
    engine: Annotated[
        str, typer.Option("--engine", help="torch, or native: a packed model where it lies, and how they differ.")
    ] = "torch",
    binary_embedding: BinaryEmbedding = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure a checkpoint or a packed model, with a 95 % interval.

    Examples: [bold]qslm eval spikegpt-mini --task wikitext2[/bold]

    [bold]qslm eval spikegpt-mini-sst2 --task labelled --file reviews.tsv --json[/bold]
    """
    use_threads(threads)
    from qslm.cli.engine import open_engine
    from qslm.evaluation import evaluate as measure
    from qslm.runtime.engine import EngineNetwork
    from qslm.spiking.layer import watch as watched

    native = open_engine(checkpoint, engine, threads)
    with Listener() as progress:
        loaded, made = open_task(
            checkpoint,
            task,
            tokenizer=tokenizer,
            binary_embedding=binary_embedding,
            data=data,
            file=file,
            context=context,
            windows=windows,
            progress=progress,
        )
        monitors = watched(loaded.model) if watch else []
        if watch and not monitors:
            raise SpikeError(
                f"{checkpoint} has no spiking layer with a static saliency to watch.", "Convert by qslm spike --static."
            )
        chosen = split or made.evaluation_split
        evaluation = measure(loaded.model, made, chosen, progress)
        difference = {}
        if native is not None:
            baseline = evaluation
            evaluation = measure(EngineNetwork(native, loaded.model), made, chosen, progress)
            difference = _difference(made, evaluation, baseline)
        if math.isnan(evaluation.low):
            progress.message(f"One {made.unit} gives no interval: how {made.unit}s vary is not known from one.")
        if watch:
            drifted = [one.recalibrations for one in monitors if one.recalibrations]
            progress.message(
                f"{len(drifted)} of {len(monitors)} inputs of spiking layers drifted from what they were calibrated on "
                f"and were calibrated anew, {sum(drifted)} times in all."
            )
    result = _result(loaded, made, chosen, evaluation) | {"engine": engine} | difference
    if watch:
        result["recalibrations"] = sum(one.recalibrations for one in monitors)
    if as_json:
        print_json(result)
    else:
        _print(result)


def _result(loaded: Any, task: Any, split: str, evaluation: Any) -> dict[str, Any]:
    return {
        "checkpoint": loaded.source,
        "task": task.name,
        "split": split,
        "metric": evaluation.metric,
        "value": evaluation.value,
        "low": evaluation.low,
        "high": evaluation.high,
        "samples": len(evaluation.losses.values),
        "unit": task.unit,
        "bytes": loaded.file_bytes,
        "tokens": evaluation.losses.tokens,
        "seconds": evaluation.seconds,
        **evaluation.details,
    }


def _difference(task: Any, native: Any, torch: Any) -> dict[str, Any]:
    """How much worse the engine is than PyTorch on the same windows or sentences, with a paired 95 % interval."""
    from qslm.tasks.statistics import compare

    kind: Any = "points" if task.higher_is_better else "relative"
    found = compare(task, native.losses, torch.losses, kind)
    scale = 1 if task.higher_is_better else 100  # a relative change is a fraction, points are percentage points
    parts = {"difference": found.loss, "difference_low": found.low, "difference_high": found.high}
    named = {"torch": torch.value} | {name: scale * part for name, part in parts.items()}
    return named | {"difference_unit": "points" if task.higher_is_better else "%"}


def _print(result: dict[str, Any]) -> None:
    from qslm.report.record import spell_value
    from qslm.units import format_bytes

    metric = result["metric"]
    value, low, high = (spell_value(metric, result[name]) for name in ("value", "low", "high"))
    rows = [
        [metric, value],
        ["95 % interval", "none" if math.isnan(result["low"]) else f"{low} to {high}"],
        [f"{result['unit']}s", f"{result['samples']:,}"],
        ["file", format_bytes(result["bytes"])],
        ["seconds", f"{result['seconds']:.1f}"],
    ]
    shown = {"metric", "value", "low", "high", "samples", "unit", "bytes", "seconds", "tokens"}
    shown |= {"checkpoint", "task", "split", "recalibrations", "engine", "torch", "difference", "difference_low"}
    shown |= {"difference_high", "difference_unit"}
    if "difference" in result:
        low, high = result["difference_low"], result["difference_high"]
        told = f"{result['difference']:+.4f} ({low:+.4f} to {high:+.4f}) {result['difference_unit']}"
        rows += [["in PyTorch", spell_value(metric, result["torch"])], ["worse than in PyTorch by", told]]
    rows += [[name.replace("_", " "), f"{value:.4f}"] for name, value in result.items() if name not in shown]
    title = f"{result['checkpoint']} on {result['task']} ({result['split']})"
    print_table(["measure", "value"], rows, title)
