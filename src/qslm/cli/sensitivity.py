"""`qslm sensitivity`: what every part of a network costs at every width, one at a time."""

from typing import TYPE_CHECKING, Annotated, cast

import typer

from qslm.cli.opening import open_task
from qslm.cli.options import (
    BinaryEmbedding,
    Checkpoint,
    Context,
    Data,
    File,
    Json,
    Output,
    ReportWindows,
    TaskName,
    Threads,
    Tokenizer,
    use_threads,
)
from qslm.cli.output import print_json, print_table
from qslm.cli.progress import Listener
from qslm.cli.storage import DEFAULT_PRECISIONS, Group, Signs, Symmetric, parse_precisions, template
from qslm.errors import TaskError
from qslm.folders import check_ahead

if TYPE_CHECKING:
    from qslm.study import Sensitivity
    from qslm.study.sensitivity import Level as PartLevel
    from qslm.study.sensitivity import Line

WINDOWS = 16  # of a text, where nothing is said
SHOWN = 60  # lines of the table on a terminal

Widths = Annotated[str, typer.Option("--widths", help="Bit widths to give each part.")]
Level = Annotated[str, typer.Option("--level", help="Which parts: block, module, site, or all.")]
SearchWindows = Annotated[
    str | None,
    typer.Option(
        "--windows",
        help=f"First windows of a text to measure, or all; {WINDOWS} by default. Sentences are all measured.",
        show_default=False,
    ),
]
Quantizer = Annotated[
    str, typer.Option("--quantizer", help="How weights are rounded: one of the names that search --quantizers takes.")
]


def sensitivity(
    checkpoint: Checkpoint,
    task: TaskName,
    output: Output,
    widths: Widths = DEFAULT_PRECISIONS,
    level: Level = "all",
    windows: SearchWindows = None,
    report_windows: ReportWindows = None,
    file: File = None,
    data: Data = None,
    tokenizer: Tokenizer = None,
    group: Group = "row",
    symmetric: Symmetric = False,
    quantizer: Quantizer = "clip",
    signs: Signs = True,
    context: Context = None,
    binary_embedding: BinaryEmbedding = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Round every block, module and site, one at a time, to every width, and rank them by what that costs.

    On the search split: loss of the metric with its paired 95 % interval, KL divergence of the logits, and of spiking
    neurons the flipped spikes, the firing rate and the membrane drift. A later search in the same folder, on the same
    windows of both splits, finds the evaluations. What was stopped goes on with the same command.

    Examples: [bold]qslm sensitivity spikegpt-mini --task wikitext2 --widths 4,3,2 --level block -o runs/parts[/bold]

    [bold]qslm sensitivity my.pth --task labelled --file reviews.tsv --widths 8,4,2 -o runs/own --json[/bold]
    """
    check_ahead(output, "study")
    chosen = parse_precisions(widths, "--widths")
    limit = parse_windows(task, windows)
    use_threads(threads)
    from qslm.report import write_sensitivity
    from qslm.search import Options
    from qslm.study import sensitivity as study

    options = Options(precisions=chosen, templates=(template(group, symmetric),), quantizers=(quantizer,), signs=signs)
    with Listener() as progress:
        loaded, made = open_task(
            checkpoint,
            task,
            tokenizer=tokenizer,
            binary_embedding=binary_embedding,
            data=data,
            file=file,
            context=context,
            windows={split: n for split, n in (("search", limit), ("report", report_windows)) if n} or None,
            progress=progress,
        )
        found = study(loaded, made, output=output, options=options, level=cast("PartLevel", level), progress=progress)
    page = write_sensitivity(output)
    paths = {"figures": output / "sensitivity.json", "report": page, "picture": output / "figures" / "sensitivity.png"}
    if as_json:
        print_json({**found.to_dict(), "paths": {name: str(path) for name, path in paths.items()}})
        return
    _print(found)
    for name, path in paths.items():
        print(f"{name:<8} {path}")
    given = {"--windows": limit, "--context": context, "--report-windows": report_windows}
    words = " ".join(f"{option} {value}" for option, value in given.items() if value is not None)
    print(f"A search in this folder finds these evaluations{f' with {words}' if words else ''}.")


def parse_windows(task: str, text: str | None) -> int | None:
    """How many windows of the search split are measured; None is all. Raises TaskError."""
    if text is None:
        return WINDOWS if task in ("wikitext2", "text") else None
    if text == "all":
        return None
    if not (text.isascii() and text.isdigit() and 2 <= int(text) < 2**31):
        raise TaskError(f"--windows {text!r} is no number of windows.", "Give 2 or more, or all.")
    return int(text)


def _print(found: "Sensitivity") -> None:
    from qslm.report.record import spell_value

    task, metric = found.about["task"], str(found.about["task"]["metric"])
    ranked = found.ranked()
    spiking = [] if ranked[0].flipped is None else ["flipped", "rate", "drift"]
    heads = ["part", "format", metric, "loss", "95 % interval", "KL (nats)", *spiking, "saves"]
    base = found.about["baseline"]
    title = (
        f"{found.about['checkpoint']['name']} on {task['name']}: float {metric} "
        f"{spell_value(metric, base['value'])}, {task['units']:,} {task['unit']}s of the search split"
    )
    print_table(heads, [_row(found, line) for line in ranked[:SHOWN]], title, texts=2)
    if len(ranked) > SHOWN:
        print(f"The first {SHOWN} of {len(ranked):,}, by loss; the report and --json have all.")
    print(f"By loss, then by KL, which is the mean over {ranked[0].rows:,} rows of logits and has less noise.")
    if spiking:
        print("flipped: share of spikes that differ; rate: change of the firing rate, in points; drift: mean |h_q - h|")
        print("over std h of the membrane potential. Means over the neuron layers, on the first batch.")


def _row(found: "Sensitivity", line: "Line") -> list[str]:
    from qslm.budget import spell_loss
    from qslm.report.record import spell_value
    from qslm.units import MB

    kind, metric = str(found.about["kind"]), str(found.about["task"]["metric"])
    cells = [
        line.name,
        line.format,
        spell_value(metric, line.value),
        spell_loss(kind, line.loss),
        f"{spell_loss(kind, line.low)} to {spell_loss(kind, line.high)}",
        f"{line.divergence:.3g}",
    ]
    if line.flipped is not None and line.rate_change is not None and line.drift is not None:
        cells += [f"{100 * line.flipped:.2f} %", f"{100 * line.rate_change:+.2f}", f"{line.drift:.3f}"]
    return [*cells, f"{(found.about['baseline']['bytes'] - line.bytes) / MB:,.3f} MB"]
