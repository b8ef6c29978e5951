"""A whole study on a SpikeGPT of the published size: 18 x 768, 50,277 words, 862 MB in float32, random weights.

    python benchmarks/full_size.py [--quick] [--json]

`qslm.search` with its default options under a rise of 5 %: 32 windows of 1,024 tokens to search on, 4 to report
(--quick: 6 and 2). Peak memory is that of the whole process that studies: Python and PyTorch, the pages of the mapped
checkpoint, and everything computed. The limits are 60 minutes and 4 GB, on two cores.

The windows are drawn from the network itself (`drawn.py`), so that rounding makes it worse. What this shows is time and
memory; how much a trained network would lose is another question.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from full_size_checkpoint import write

MINUTES, GB = 60.0, 4.0
WINDOWS, QUICK = {"search": 32, "report": 4}, {"search": 6, "report": 2}
CONTEXT = 1024
CALIBRATE = 8  # windows, of which the first half each is looked at
RISE = 0.05
STAGES = ("write", "draw", "study")


PARTS = "seconds and the largest resident memory of each part, without the parts that it calls"


def draw_windows(checkpoint: Path, windows: Path, counts: dict[str, int]) -> dict[str, Any]:
    """Draw the windows, and see how often the neurons fire."""
    import torch
    from drawn import draw

    from qslm.loading.checkpoint import load_model
    from qslm.models.spikegpt import SpikeGPT

    model = load_model(checkpoint)
    assert isinstance(model, SpikeGPT)
    drawn, rates = draw(model, {**counts, "calibrate": CALIBRATE}, CONTEXT)
    torch.save(drawn, windows)
    return {"firing_rates": rates}


def study(checkpoint: Path, windows: Path, output: Path) -> dict[str, Any]:
    """The study itself, with what its parts took."""
    import torch
    from drawn import DrawnWindows
    from stopwatch import Stopwatch

    from qslm import Budget, load_checkpoint, search
    from qslm.cli.progress import Listener
    from qslm.evaluation import Ledger

    drawn = torch.load(windows, weights_only=True)
    with Stopwatch(study_parts()) as watch, Listener() as progress:
        opened = load_checkpoint(checkpoint)
        task = DrawnWindows(drawn, opened.model.config.vocabulary_size)
        selection = search(opened, task, budget=Budget(None, RISE, "relative"), output=output, progress=progress)
    with Ledger.read(output / "ledger.sqlite") as ledger:
        baseline, *rows = (row.evaluation for row in ledger.rows("search"))
    recorded = json.loads((output / "study.json").read_text())
    return {
        "threads": torch.get_num_threads(),
        "baseline": baseline.value,
        "selected": selection.search_selected.value,
        "saving": selection.selected.saving,
        "bits": bits_of(selection.allocation),
        "conclusion": selection.difference.conclusion,
        "evaluations": [
            {"value": one.value, "bytes": one.footprint_file, "windows": len(one.losses.values), "work": one.work}
            for one in rows
        ],
        "work": recorded["estimate_work"] + sum(one.work for one in rows),
        "parts": watch.to_dict(),
    }


def study_parts() -> dict[str, list[tuple[Any, str]]]:
    """The functions whose time and memory are told apart."""
    from qslm.evaluation import Evaluator, Ledger, estimates
    from qslm.evaluation.chain import BlockChain
    from qslm.loading import checkpoint as loading
    from qslm.search import Strategy
    from qslm.study import expecting, judging, loop

    return {
        "load": [(loading, "load_spikegpt"), (loading, "_digest")],
        "check": [(loop, "check_ground"), (loop, "check_overlap"), (loop, "check_precision"), (loop, "identity")],
        "expect losses: gradients": [(estimates, "_fisher")],
        "expect losses: rounding": [(expecting, "estimate_costs")],
        "choose what to evaluate": [(Strategy, "ask"), (Strategy, "tell")],
        "round": [(Evaluator, "apply")],
        "forward": [(BlockChain, "run")],
        "compare and foretell": [(judging, "foretell"), (judging, "compare")],
        "keep in the ledger": [(Ledger, "put")],
        "pack": [(loop, "write_packed")],
    }


def bits_of(allocation: Any) -> dict[str, int]:
    """How many weights are stored in each format."""
    found: dict[str, int] = {}
    for site, fmt in allocation.items():
        found[str(fmt)] = found.get(str(fmt), 0) + site.numel
    return found


def run_stage(stage: str, folder: Path, options: argparse.Namespace) -> None:
    """Do one stage in this process and print what it took."""
    start = time.perf_counter()
    checkpoint, windows = folder / "spikegpt-random.pth", folder / "windows.pt"
    found: dict[str, Any] = {}
    if stage == "write":
        write(checkpoint, options.layers, options.width, options.vocabulary)
    elif stage == "draw":
        found = draw_windows(checkpoint, windows, counts(options))
    else:
        found = study(checkpoint, windows, folder / "run")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    print(json.dumps({"stage": stage, "peak_bytes": peak, "seconds": time.perf_counter() - start, **found}))


def counts(options: argparse.Namespace) -> dict[str, int]:
    """How many windows there are of each split."""
    usual = QUICK if options.quick else WINDOWS
    return {"search": options.windows or usual["search"], "report": usual["report"]}


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run every stage in a process of its own; what the last one, the study, took."""
    given = ("layers", "width", "vocabulary", "windows")
    passed = [f"--{name}={getattr(options, name)}" for name in given] + ["--quick"] * options.quick
    row: dict[str, Any] = {}
    for stage in STAGES:
        print(f"{stage} ...", file=sys.stderr, flush=True)
        command = [sys.executable, __file__, "--stage", stage, "--folder", str(folder), *passed]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        row |= json.loads(done.stdout.splitlines()[-1])
    minutes, gigabytes = row["seconds"] / 60, row["peak_bytes"] / 1e9
    limits = {"limit_minutes": MINUTES, "limit_gb": GB, "kept": minutes <= MINUTES and gigabytes <= GB}
    sizes = {"windows": counts(options), "context": CONTEXT, "quick": options.quick}
    return {"minutes": minutes, "peak_gb": gigabytes, **limits, **sizes, **row}


def tell(found: dict[str, Any]) -> None:
    """Print what a person wants to know."""
    print(f"{PARTS}:")
    for part, took in found["parts"].items():
        peak = f"{took['peak']['all'] / 1e9:.2f} GB" if took["peak"] else ""
        print(f"  {part:28} {took['seconds']:8.1f} s  {took['calls']:6d} calls  {peak}")
    print(f"perplexity {found['baseline']:.1f} to {found['selected']:.1f}, {100 * found['saving']:.1f} % saved")
    print(
        f"{found['minutes']:.1f} minutes of {MINUTES:g}, {found['peak_gb']:.2f} GB of {GB:g}: "
        f"{'kept' if found['kept'] else 'BROKEN'} ({found['threads']} threads)"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=50277)
    parser.add_argument("--windows", type=int, default=0, help="windows to search on, in place of the usual number")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK['search']} windows, for less than 30 minutes")
    parser.add_argument("--folder", type=Path, help="where everything is written; a temporary folder without")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--stage", choices=STAGES, help="do this one in this process")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.stage:
            run_stage(options.stage, folder, options)
            return 0
        found = measure(folder, options)
    if options.json:
        print(json.dumps(found))
    else:
        tell(found)
    return 0 if found["kept"] else 1


if __name__ == "__main__":
    sys.exit(main())
