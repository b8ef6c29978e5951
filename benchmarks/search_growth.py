"""What a search costs against the number of layers: evaluations, work, and the seconds that are no forwarding.

    python benchmarks/search_growth.py [--quick] [--json] [--figure docs/search-growth.png]

SpikeGPTs of width 64 with random weights and 2 to 48 layers (--quick: 2 to 12), 15 to 337 matrices beside the
embedding, which stays as signs. Each is searched under a rise of perplexity of 5 % on the same 1,024 tokens: by the
knapsack with the default options, and by the paper's tiered search taken literally, which measures every allocation
whole. What was selected is then measured on 16,384 other tokens, and the last columns say whether it keeps the limit
there. Work is tokens times blocks forwarded, sensitivity counted, the float baseline not; `work_whole` is that of the
same evaluations run from the first block on, which a program without kept activations does. One thread.

What it does not show: how a trained network of many layers loses; the number of evaluations depends on that.
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from drawn import DrawnWindows, draw
from full_size import study_parts
from full_size_checkpoint import random_weights
from stopwatch import Stopwatch

from qslm import Budget, Options, search
from qslm.evaluation import Ledger
from qslm.models.checkpoint import load_spikegpt
from qslm.models.spikegpt import SpikeGPT

LAYERS, QUICK = (2, 4, 8, 16, 32, 48), (2, 4, 8, 12)
WIDTH, VOCABULARY, CONTEXT, BATCH = 64, 256, 64, 4
WINDOWS = {"search": 16, "report": 256, "calibrate": 64}
SHARPER = 3.0  # times the head, so that predictions are as uncertain as a trained network's
RISE = 0.05
STRATEGIES = {"knapsack": Options(), "literal": Options(strategy="literal", early=False)}
FORWARDING = ("forward", "expect losses: gradients")
AXES = {"evaluations": "evaluations", "work": "work (tokens x blocks)", "seconds_outside": "seconds beside forwarding"}


def network(layers: int) -> SpikeGPT:
    """A SpikeGPT with random weights whose neurons fire."""
    state = random_weights(layers, WIDTH, VOCABULARY)
    state["head.weight"] *= SHARPER
    return load_spikegpt(state, {"context_length": CONTEXT}, origin="random weights")


def measure(layers: int, strategy: str, folder: Path) -> dict[str, Any]:
    """One study; what it cost."""
    model = network(layers)
    windows, rates = draw(model, WINDOWS, CONTEXT)
    task, run = DrawnWindows(windows, VOCABULARY, BATCH), folder / f"{strategy}-{layers}"
    with Stopwatch(study_parts()) as watch:
        options = STRATEGIES[strategy]
        selection = search(model, task, budget=Budget(None, RISE, "relative"), output=run, options=options)
    with Ledger.read(run / "ledger.sqlite") as ledger:
        baseline, *found = (row.evaluation for row in ledger.rows("search"))
    recorded = json.loads((run / "study.json").read_text())
    outside = {name: watch.seconds[name] for name in OUTSIDE}
    return {
        "layers": layers,
        "blocks": len(selection.allocation.anatomy.blocks),
        "sites": len(options.matrices(selection.allocation.anatomy)),
        "strategy": strategy,
        "evaluations": len(found),
        "work": recorded["estimate_work"] + sum(one.work for one in found),
        "work_whole": recorded["estimate_work"] + len(found) * baseline.work,
        "seconds_outside": sum(outside.values()),
        "outside": outside,
        "seconds_forwarding": sum(watch.seconds[name] for name in FORWARDING),
        "saving": selection.selected.saving,
        "rise": selection.search_difference.loss,
        "report": {name: getattr(selection.difference, name) for name in ("loss", "low", "high", "conclusion")},
        "firing_rate": sum(rates) / len(rates),
    }


OUTSIDE = ("choose what to evaluate", "round", "expect losses: rounding", "compare and foretell", "keep in the ledger")


def exponents(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Least squares of log(cost) on log(layers): the power of the number of layers that a cost grows with."""
    return {
        strategy: {
            cost: slope([(row["layers"], row[cost]) for row in rows if row["strategy"] == strategy])
            for cost in (*AXES, "work_whole")
        }
        for strategy in STRATEGIES
    }


def slope(points: list[tuple[float, float]]) -> float:
    """The slope of the line through the logarithms of points."""
    logs = [(math.log(x), math.log(max(y, 1e-9))) for x, y in points]
    x_mean, y_mean = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    return sum((x - x_mean) * (y - y_mean) for x, y in logs) / sum((x - x_mean) ** 2 for x, _ in logs)


def plot(rows: list[dict[str, Any]], powers: dict[str, dict[str, float]], path: Path) -> None:
    """Three costs against the layers, on logarithmic axes."""
    from qslm.report.pictures import new_figure, save_figure

    figure = new_figure(10, 3.4)
    layers = sorted({row["layers"] for row in rows})
    for axes, (cost, label) in zip(figure.subplots(1, 3), AXES.items(), strict=True):
        for strategy, marker in zip(STRATEGIES, "os", strict=True):
            found = [(row["layers"], row[cost]) for row in rows if row["strategy"] == strategy]
            name = f"{strategy}, layers^{powers[strategy][cost]:.1f}"
            axes.plot(*zip(*found, strict=True), marker=marker, markersize=5, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(layers, [str(count) for count in layers])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("layers")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        save_figure(figure, file)


def tell(rows: list[dict[str, Any]], powers: dict[str, dict[str, float]]) -> None:
    """Print the costs as a table."""
    print("layers  sites  strategy  evaluations          work   from the start      beside   saved  rise on other text")
    for row in rows:
        loss, low, high = (f"{100 * row['report'][name]:.1f}" for name in ("loss", "low", "high"))
        print(
            f"{row['layers']:6}  {row['sites']:5}  {row['strategy']:8}  {row['evaluations']:11,}  {row['work']:12,}  "
            f"{row['work_whole']:15,}  {row['seconds_outside']:8.1f} s  {100 * row['saving']:5.1f} %  "
            f"{loss} % ({low} to {high}), {row['report']['conclusion']}"
        )
    for strategy, found in powers.items():
        print(f"{strategy}: " + ", ".join(f"{cost} as layers^{power:.2f}" for cost, power in found.items()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", help="numbers of layers, in place of the usual ones")
    parser.add_argument("--quick", action="store_true", help="up to 12 layers")
    parser.add_argument("--figure", type=Path, help="where the plot is written")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for layers in options.layers or (QUICK if options.quick else LAYERS):
            for strategy in STRATEGIES:
                rows.append(measure(layers, strategy, Path(folder)))
                print(
                    f"{layers} layers, {strategy}: {rows[-1]['evaluations']} evaluations", file=sys.stderr, flush=True
                )
    powers = exponents(rows)
    if options.figure:
        plot(rows, powers, options.figure)
    if options.json:
        print(json.dumps({"rows": rows, "exponents": powers}))
    else:
        tell(rows, powers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
