"""What QSLM's tiered search finds on the shipped models under the paper's constraints, from the report splits.

    python benchmarks/shipped_studies.py --data DIR [--task TASK] [--output runs/studies] [--json]

WikiText-2 on `spikegpt-mini`: a rise of perplexity of at most 1 and 4. SST-2 on `spikegpt-mini-sst2`: a drop of at most
2 and 5 points. Memory: 400 MiB of the paper's 821.7, so 48.7 % of float32. One thread, so that no
figure depends on the number of cores; run the two tasks side by side to use two. A killed run goes on where it was.
"""

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qslm import Budget, find_anatomy, load_checkpoint, make_task, search
from qslm.cli.progress import Listener
from qslm.report import write_report
from qslm.search import Options
from qslm.study import Selection
from qslm.study.folder import LEDGER
from qslm.units import MB, parse_memory

MEMORY = "48.7%"
SEARCH_WINDOWS = 256  # of 256 tokens


@dataclass(frozen=True)
class Case:
    name: str
    checkpoint: str
    task: str
    limit: float
    paper: str  # what the paper reports under this constraint, on SpikeGPT-216M


CASES = (
    Case("a1", "spikegpt-mini-sst2", "sst2", 2.0, "85.7 % saved, 84.4 % accuracy (float 85.7 %)"),
    Case("a2", "spikegpt-mini-sst2", "sst2", 5.0, "86.5 % saved, 81.3 % accuracy"),
    Case("b1", "spikegpt-mini", "wikitext2", 1.0, "68.7 % saved, perplexity 24.6 (float 26.5)"),
    Case("b2", "spikegpt-mini", "wikitext2", 4.0, "62.4 % saved, perplexity 23.2"),
)


def run(case: Case, data: Path | None, output: Path, progress: Listener) -> Selection:
    """Run one case in a run folder of its own; a case starts from what the earlier one of its task has measured."""
    checkpoint = load_checkpoint(case.checkpoint, progress=progress)
    task = make_task(
        case.task,
        tokenizer=checkpoint.tokenizer,
        config=checkpoint.config,
        data=data,
        windows={"search": SEARCH_WINDOWS} if case.task == "wikitext2" else None,
        progress=progress,
    )
    earlier = next((other for other in CASES if other.task == case.task and other != case), case)
    ledger, known = output / case.name / LEDGER, output / earlier.name / LEDGER
    if known.exists() and not ledger.exists():
        ledger.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(known, ledger)
    memory = parse_memory(MEMORY, find_anatomy(checkpoint.model).float32_bytes)
    budget = Budget(memory, case.limit, "points" if case.task == "sst2" else "absolute")
    options = Options(strategy="tiered", early=False)
    return search(checkpoint, task, budget=budget, output=output / case.name, options=options, progress=progress)


def row(case: Case, selection: Selection) -> dict[str, Any]:
    selected, difference = selection.selected, selection.difference
    return {
        "case": case.name,
        "task": case.task,
        "limit": case.limit,
        "baseline": selection.baseline.to_dict(),
        "selected": selected.figures.to_dict(),
        "loss": {key: getattr(difference, key) for key in ("loss", "low", "high", "conclusion")},
        "saving": selected.saving,
        "saving_file": selected.saving_file,
        "evaluations": selection.evaluations,
        "seconds": selection.seconds,
        "paper": case.paper,
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| case | limit | float | selected | loss, 95 % interval | | file | saved | paper, on SpikeGPT-216M |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in rows:
        accuracy = one["task"] == "sst2"
        scale, unit = (100.0, " %") if accuracy else (1.0, "")
        loss = one["loss"]
        lines.append(
            f"| {one['case']} | {'drop' if accuracy else 'rise'} of {one['limit']:g} "
            f"| {one['baseline']['value'] * scale:.2f}{unit} | {one['selected']['value'] * scale:.2f}{unit} "
            f"| {loss['loss']:+.2f} ({loss['low']:+.2f} to {loss['high']:+.2f}) | {loss['conclusion']} "
            f"| {one['selected']['bytes'] / MB:.2f} MB | {100 * one['saving']:.1f} % | {one['paper']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None, help="folder with wikitext-2/ and sst2/")
    parser.add_argument("--output", type=Path, default=Path("runs/studies"), help="folder of the run folders")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--task", choices=("wikitext2", "sst2"), default=None, help="only the cases of this task")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with Listener() as progress:
        for case in (case for case in CASES if arguments.task in (None, case.task)):
            rows.append(row(case, run(case, arguments.data, arguments.output, progress)))
            write_report(arguments.output / case.name)
    print(json.dumps({"rows": rows}, indent=2) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
