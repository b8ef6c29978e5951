"""What every quantizer loses at every width, and what a search with all of them finds.

    python benchmarks/quantizers.py --data DIR [--quick] [--docs docs] [--json]

`rows`: both shipped checkpoints with every matrix at 8, 6, 5, 4, 3 or 2 bits, the embedding as signs, vectors in
float32, one scale a row or a group of 64, rounded by every quantizer: bytes of the model file, and the loss against
float32 on the report split with its paired 95 % interval, in points of accuracy or percent of perplexity. `studies`:
the smallest file under a drop of 1 point (SST-2) and a rise of 1 and 5 % (WikiText-2), searched with all quantizers,
widths and groups, and what it loses on the report split. Calibrated quantizers see training text alone.

Every evaluation is kept in --output: a killed program goes on where it was. --quick measures a part of the data.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from qslm import Allocation, Budget, Options, find_anatomy, load_checkpoint, make_task, search
from qslm.cli.progress import Listener
from qslm.evaluation import Evaluator, Ledger
from qslm.formats import Format
from qslm.loading.checkpoint import Checkpoint
from qslm.quantizers import QUANTIZERS
from qslm.report.pictures import new_figure, save_figure
from qslm.study.expecting import inputs_of
from qslm.study.folder import LEDGER
from qslm.study.identity import identity
from qslm.study.measuring import Measurements
from qslm.study.subject import Subject
from qslm.tasks import Task
from qslm.tasks.statistics import Kind, compare
from qslm.units import MB

CHECKPOINTS = {"wikitext2": "spikegpt-mini", "sst2": "spikegpt-mini-sst2"}
BITS, GROUPS = (8, 6, 5, 4, 3, 2), ("row", "g64")
KINDS: dict[str, Kind] = {"wikitext2": "relative", "sst2": "points"}
SCALES = {"wikitext2": 100.0, "sst2": 1.0}  # from the unit of a loss to percent, or points
STUDIES = (("sst2", 1.0), ("wikitext2", 0.01), ("wikitext2", 0.05))
LADDER = Options(
    precisions=BITS,
    templates=tuple(Format.parse(f"int8-{group}") for group in ("row", "g64", "g32")),
    quantizers=("gptq", "awq_gptq", "awq", "clip", "hqq"),
)
WINDOWS = {"wikitext2": {"search": 256}, "sst2": {}}
QUICK = {"wikitext2": {"search": 64, "report": 96}, "sst2": {"search": 400, "report": 872}}
COLOURS = {
    "minmax": "#7a8594",
    "clip": "#1f6fb4",
    "hqq": "#c8742b",
    "gptq": "#2c7a3f",
    "awq": "#8a4fb4",
    "awq_gptq": "#b8336a",
}


def opened(name: str, arguments: argparse.Namespace, progress: Listener) -> tuple[Checkpoint, Task]:
    """The shipped checkpoint of a task, and the task."""
    checkpoint = load_checkpoint(CHECKPOINTS[name], progress=progress)
    task = make_task(
        name,
        tokenizer=checkpoint.tokenizer,
        config=checkpoint.config,
        data=arguments.data,
        windows=(QUICK if arguments.quick else WINDOWS)[name] or None,
        progress=progress,
    )
    return checkpoint, task


def rows_of(name: str, arguments: argparse.Namespace, progress: Listener) -> list[dict[str, Any]]:
    """Every quantizer at every width, one after the other."""
    checkpoint, task = opened(name, arguments, progress)
    anatomy, run = find_anatomy(checkpoint.model), arguments.output / f"rows-{name}"
    options = Options(quantizers=tuple(QUANTIZERS))
    found = []
    with Ledger.open(run / LEDGER, identity(Subject.of(checkpoint), task)) as ledger:
        inputs = inputs_of(run, ledger, checkpoint.model, anatomy, task, options, progress)
        with Evaluator(checkpoint.model, anatomy, task, progress, inputs=inputs) as evaluator:
            measurements = Measurements(ledger, evaluator)
            base = measurements.measure(Allocation.float32(anatomy), "report", "rows", "float32")
            for bits, group, method in ((b, g, m) for b in BITS for g in GROUPS for m in QUANTIZERS):
                plain = Options(templates=(Format.parse(f"int8-{group}"),), quantizers=(method,))
                allocation = plain.uniform(anatomy, Format.parse(f"int{bits}-{group}"))
                one = measurements.measure(allocation, "report", "rows", f"{method} int{bits}-{group}")
                paired = compare(task, base.losses, one.losses, KINDS[name])
                ends = {end: SCALES[name] * getattr(paired, end) for end in ("loss", "low", "high")}
                size = allocation.footprint().file
                found.append(
                    {
                        "checkpoint": checkpoint.name,
                        "method": method,
                        "bits": bits,
                        "group": group,
                        "bytes": size,
                        **ends,
                    }
                )
    return found


def study_of(name: str, limit: float, arguments: argparse.Namespace, progress: Listener) -> dict[str, Any]:
    """The smallest file under a limit, with all quantizers, widths and groups."""
    checkpoint, task = opened(name, arguments, progress)
    budget = Budget(None, limit, KINDS[name])
    run = arguments.output / f"study-{name}-{limit:g}"
    selection = search(checkpoint, task, budget=budget, output=run, options=LADDER, progress=progress)
    searched, reported = selection.search_difference, selection.difference
    return {
        "task": name,
        "limit": SCALES[name] * limit,
        "saving": selection.selected.saving,
        "bytes": selection.selected.bytes,
        **{end: SCALES[name] * getattr(reported, end) for end in ("loss", "low", "high")},
        "conclusion": reported.conclusion,
        "search_bound": SCALES[name] * searched.bound,
        "evaluations": selection.evaluations,
        "formats": sorted({str(fmt) for _, fmt in selection.allocation.items()}),
        "quantizers": selection.allocation.quantizers,
    }


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Loss against the bytes of the file, one line a quantizer, one scale a row drawn through."""
    figure = new_figure(10, 4)
    for axes, (name, checkpoint) in zip(figure.subplots(1, 2), CHECKPOINTS.items(), strict=True):
        for method, colour in COLOURS.items():
            for group, style in zip(GROUPS, ("-", ":"), strict=True):
                line = [r for r in rows if (r["checkpoint"], r["method"], r["group"]) == (checkpoint, method, group)]
                sizes, losses = [r["bytes"] / MB for r in line], [r["loss"] for r in line]
                label = method if group == "row" else None
                axes.plot(sizes, losses, style, color=colour, marker="o", markersize=3, label=label)
        axes.set_yscale("symlog", linthresh=1.0)
        axes.set_xlabel("model file (MB)")
        axes.set_ylabel("rise of perplexity (%)" if name == "wikitext2" else "drop of accuracy (points)")
        axes.set_title(checkpoint, fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        save_figure(figure, file)


def show(result: dict[str, Any]) -> None:
    """Both tables."""
    print("| checkpoint | format | " + " | ".join(f"{method}" for method in QUANTIZERS) + " |")
    print("| --- | --- |" + " --- |" * len(QUANTIZERS))
    cells: dict[tuple[str, str, float], dict[str, str]] = {}
    for row in result["rows"]:
        key = row["checkpoint"], f"int{row['bits']}-{row['group']}", row["bytes"]
        cells.setdefault(key, {})[row["method"]] = f"{row['loss']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f})"
    for (checkpoint, fmt, size), found in cells.items():
        losses = " | ".join(found[method] for method in QUANTIZERS)
        print(f"| {checkpoint} | {fmt}, {size / MB:.2f} MB | {losses} |")
    print("\n| task | limit | saved | file | loss, 95 % interval | | bound on the search split | evaluations |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for one in result["studies"]:
        print(
            f"| {one['task']} | {one['limit']:g} | {100 * one['saving']:.2f} % | {one['bytes'] / MB:.3f} MB | "
            f"{one['loss']:+.2f} ({one['low']:+.2f} to {one['high']:+.2f}) | {one['conclusion']} | "
            f"{one['search_bound']:.2f} | {one['evaluations']} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/quantizers"))
    parser.add_argument("--docs", type=Path, help="folder of the figure; --output without")
    parser.add_argument("--quick", action="store_true", help="a part of the data, for less than 30 minutes")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.output = arguments.output / ("quick" if arguments.quick else "full")
    with Listener() as progress:
        studies = [study_of(name, limit, arguments, progress) for name, limit in STUDIES]
        rows = [row for name in CHECKPOINTS for row in rows_of(name, arguments, progress)]
    result = {"rows": rows, "studies": studies}
    plot(rows, (arguments.docs or arguments.output) / "quantizers.png")
    (arguments.output / "result.json").write_text(json.dumps(result, indent=2))
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)


if __name__ == "__main__":
    main()
