"""What every quantizer loses at every width, and what a search with all of them finds.

    python benchmarks/quantizers.py --data DIR [--quick] [--docs docs] [--json]

`rows`: both shipped checkpoints with every matrix at 8, 6, 5, 4, 3 or 2 bits, the embedding as signs, vectors in
float32, one scale a row, at 4 bits and fewer also one a group of 64, rounded by every quantizer, and at 3 and 2 bits a
row with the rounding that reconstruction learns on GPTQ's: bytes of the model file, and the loss against float32 on the
report split with its paired 95 % interval, in points of accuracy or percent of perplexity. `vectors`: what is lost with
vectors in float16 alone. `studies`: the smallest file under a drop of 1 point (SST-2) and a rise of 1 and 5 %
(WikiText-2), and the most accurate one of SST-2 in 7.5 % of the float32 bytes; searched with these widths, a scale a
row or 8-bit scales of rows and groups of 64 and 32, every quantizer but min-max, vectors in float16 and a reconstructed
finalist, and what it loses on the report split. Calibrated quantizers and reconstruction see training text alone.

Every evaluation and every reconstruction is kept in --output: a killed program goes on where it was. --quick measures
a part of the data, learns on a sixteenth of the text at 2 bits, and reconstructs no finalist.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import command

from qslm import Allocation, Budget, Options, find_anatomy, load_checkpoint, make_task, search
from qslm.cli.progress import Listener
from qslm.evaluation import Evaluation, Evaluator, Ledger, reconstruction
from qslm.formats import FLOAT16, Format
from qslm.loading.checkpoint import Checkpoint
from qslm.quantizers import QUANTIZERS
from qslm.report.pictures import new_figure, save_figure
from qslm.study.expecting import inputs_of
from qslm.study.folder import LEDGER
from qslm.study.identity import identity
from qslm.study.measuring import Measurements
from qslm.study.reconstructing import learned_sites
from qslm.study.subject import Subject
from qslm.tasks import Task
from qslm.tasks.statistics import Kind, compare
from qslm.units import MB

CHECKPOINTS = {"wikitext2": "spikegpt-mini", "sst2": "spikegpt-mini-sst2"}
BITS, GROUPS = (8, 6, 5, 4, 3, 2), ("row", "g64")
GROUPED_BITS = (4, 3, 2)  # of which groups are measured too: above, rows lose next to nothing
RECONSTRUCTED_BITS = (3, 2)
KINDS: dict[str, Kind] = {"wikitext2": "relative", "sst2": "points"}
SCALES = {"wikitext2": 100.0, "sst2": 1.0}  # from the unit of a loss to percent, or points
STUDIES: tuple[tuple[str, float, float | None], ...] = (  # task, largest loss, and a share of the float32 bytes
    ("sst2", 1.0, None),
    ("sst2", 1.0, 0.075),
    ("wikitext2", 0.01, None),
    ("wikitext2", 0.05, None),
)
TEMPLATES = ("row", "row-s8", "g64-s8", "g32-s8")
METHODS = ("gptq", "clip", "hqq", "awq", "awq_gptq", "minmax")
CALIBRATION = {"calibrate": 512}  # windows of WikiText-2 train
WINDOWS = {"wikitext2": {"search": 256, **CALIBRATION}, "sst2": {}}
QUICK = {"wikitext2": {"search": 64, "report": 96, **CALIBRATION}, "sst2": {"search": 400, "report": 400}}
QUICK_TOKENS = 1 << 13  # that reconstruction learns on
RECONSTRUCTION = "reconstruct"
COLOURS = {
    "minmax": "#7a8594",
    "clip": "#1f6fb4",
    "hqq": "#c8742b",
    "gptq": "#2c7a3f",
    "awq": "#8a4fa3",
    "awq_gptq": "#b03a48",
    RECONSTRUCTION: "#111111",
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


class Rows:
    """The measurements of one checkpoint with every matrix in one format."""

    def __init__(self, name: str, measurements: Measurements, checkpoint: str) -> None:
        self.name, self.measurements, self.checkpoint = name, measurements, checkpoint
        self.anatomy = measurements.evaluator.anatomy
        self.base = self._measured(Allocation.float32(self.anatomy), "float32")

    def _measured(self, allocation: Allocation, note: str) -> Evaluation:
        return self.measurements.measure(allocation, "report", "rows", note)

    def loss(self, allocation: Allocation, note: str) -> dict[str, float]:
        """How much worse an allocation is than float32, in points or percent."""
        task = self.measurements.evaluator.task
        paired = compare(task, self._measured(allocation, note).losses, self.base.losses, KINDS[self.name])
        return {end: SCALES[self.name] * getattr(paired, end) for end in ("loss", "low", "high")}

    def row(self, allocation: Allocation, method: str, fmt: Format) -> dict[str, Any]:
        """One row of the table."""
        return {
            "checkpoint": self.checkpoint,
            "method": method,
            "bits": fmt.bits,
            "group": str(fmt).partition("-")[2],
            "bytes": allocation.footprint().file,
            **self.loss(allocation, f"{method} {fmt}"),
        }

    def uniform(self, fmt: Format, method: str) -> Allocation:
        """Every matrix in a format, the embedding as signs."""
        return Options(templates=(fmt,), quantizers=(method,)).uniform(self.anatomy, fmt)


def rows_of(
    name: str, arguments: argparse.Namespace, progress: Listener
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Every quantizer at every width, one after the other; and vectors in float16 alone."""
    checkpoint, task = opened(name, arguments, progress)
    anatomy, run = find_anatomy(checkpoint.model), arguments.output / f"rows-{name}"
    with Ledger.open(run / LEDGER, identity(Subject.of(checkpoint), task, anatomy)) as ledger:
        inputs = inputs_of(run, ledger, checkpoint.model, anatomy, task, Options(quantizers=QUANTIZERS), progress)
        with Evaluator(checkpoint.model, anatomy, task, progress, inputs=inputs) as evaluator:
            rows = Rows(name, Measurements(ledger, evaluator), checkpoint.name)
            named = [(bits, group) for bits in BITS for group in GROUPS[: 1 + (bits in GROUPED_BITS)]]
            formats = [Format.parse(f"int{bits}-{group}") for bits, group in named]
            found = [rows.row(rows.uniform(fmt, method), method, fmt) for fmt in formats for method in METHODS]
            for bits in RECONSTRUCTED_BITS[arguments.quick :]:
                fmt = Format.parse(f"int{bits}-row")
                start = rows.uniform(fmt, "gptq")
                learned = learned_sites(run, rows.measurements, start, progress)
                evaluator.learned[str(start.reconstructed().quantizer)] = learned
                found.append(rows.row(start.reconstructed(), RECONSTRUCTION, fmt))
            floats = Allocation.float32(anatomy)
            vectors = [site.name for site in anatomy.sites if site.is_vector]
            halved = rows.loss(floats.replace(vectors, FLOAT16), "vectors in float16")
    return found, {"checkpoint": checkpoint.name, **halved}


def study_of(
    name: str, limit: float, share: float | None, arguments: argparse.Namespace, progress: Listener
) -> dict[str, Any]:
    """The smallest file under a limit, with the whole ladder of formats and quantizers.

    With a `share` of the float32 bytes, of what fits into them that which loses least.
    """
    checkpoint, task = opened(name, arguments, progress)
    ladder = Options(
        precisions=BITS,
        templates=tuple(Format.parse(f"int8-{one}") for one in TEMPLATES),
        vectors=FLOAT16,
        quantizers=METHODS[:-1],
        reconstruct=0 if arguments.quick else 1,
    )
    run = arguments.output / (f"study-{name}-{limit:g}" + (f"-{share:g}" if share else ""))
    budget = Budget(None, limit, KINDS[name])
    if share is not None:
        most = int(share * find_anatomy(checkpoint.model).float32_bytes)
        budget = Budget(most, limit, KINDS[name], prefer="score", mu=0.0)
    selection = search(checkpoint, task, budget=budget, output=run, options=ladder, progress=progress)
    searched, reported = selection.search_difference, selection.difference
    return {
        "task": name,
        "limit": SCALES[name] * limit,
        "share": share,
        "saving": selection.selected.saving,
        "bytes": selection.selected.bytes,
        **{end: SCALES[name] * getattr(reported, end) for end in ("loss", "low", "high")},
        "conclusion": reported.conclusion,
        "search_bound": SCALES[name] * searched.bound,
        "evaluations": selection.evaluations,
        "tier": selection.selected.tier,
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


def spelled(one: dict[str, Any]) -> str:
    """A loss with its interval."""
    return f"{one['loss']:+.2f} ({one['low']:+.2f} to {one['high']:+.2f})"


def show(result: dict[str, Any]) -> None:
    """All tables."""
    methods = (*METHODS, RECONSTRUCTION)
    print("| checkpoint | format | " + " | ".join(methods) + " |")
    print("| --- | --- |" + " --- |" * len(methods))
    lines: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in result["rows"]:
        lines.setdefault((row["checkpoint"], f"int{row['bits']}-{row['group']}"), {})[row["method"]] = row
    for (checkpoint, fmt), found in lines.items():
        size = min(row["bytes"] for row in found.values()) / MB
        losses = " | ".join(spelled(found[method]) if method in found else "" for method in methods)
        print(f"| {checkpoint} | {fmt}, {size:.2f} MB | {losses} |")
    for one in result["vectors"]:
        print(f"\nVectors in float16, {one['checkpoint']}: {spelled(one)}")
    print("\n| task | limit | saved | file | loss, 95 % interval | | bound on the search split | evaluations |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for one in result["studies"]:
        within = f", within {one['share']:.1%}" if one["share"] else ""
        print(
            f"| {one['task']} | {one['limit']:g}{within} | {100 * one['saving']:.2f} % | {one['bytes'] / MB:.3f} MB | "
            f"{spelled(one)} | {one['conclusion']} | {one['search_bound']:.2f} | {one['evaluations']} |"
        )


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/quantizers"))
    parser.add_argument("--docs", type=Path, help="folder of the figure; --output without")
    parser.add_argument("--quick", action="store_true", help="a part of the data, for less than 30 minutes")
    arguments = parser.parse_args()
    arguments.output = arguments.output / ("quick" if arguments.quick else "full")
    if arguments.quick:
        reconstruction.TOKENS = QUICK_TOKENS
    with command.listening(parser) as progress:
        studies = [study_of(name, limit, share, arguments, progress) for name, limit, share in STUDIES]
        found = [rows_of(name, arguments, progress) for name in CHECKPOINTS]
    rows, vectors = [row for rows, _ in found for row in rows], [halved for _, halved in found]
    result = {"rows": rows, "vectors": vectors, "studies": studies}
    plot(rows, (arguments.docs or arguments.output) / "quantizers.png")
    (arguments.output / "result.json").write_text(json.dumps(result, indent=2))
    command.tell(result, arguments, show)


if __name__ == "__main__":
    main()
