"""What a search costs and what it finds: the default strategy against the literal tiered search, TPE and NSGA-II.

    python benchmarks/search_cost.py --data DIR [--quick] [--prefer smallest] [--output runs/search_cost] [--json]

On `spikegpt-mini` and WikiText-2, with 64 windows of 1,024 tokens of validation to search on: the cases b1 to b3 of
the paper (a rise of perplexity of 1, 4 and 4; 400, 400 and 420 MiB of its 821.7) and a tight one (10 % of float32, a
rise of 5 %). All strategies have the same precisions, quantizer and signs, and select by the score of Eq. 1 with `mu`
perplexity points per unit of memory ratio (the paper's list of mu is unknown), or with `--prefer smallest` the smallest
file; scores are compared all the same. Work is tokens times blocks forwarded:
of the default strategy what it really forwarded, the expected costs included with a backward pass as two forward ones;
of the others their evaluations without any saving but the reuse of an identical allocation. The float baseline and the
report split count for none. TPE and NSGA-II get as many evaluations as the default's work pays for, rounded up; since
these are two or three, of the uniform allocations that both begin with, they are run again with ten times the work
(`tpe_tenfold`, `nsga2_tenfold`).

What each selected is then measured on the whole of validation, where nothing was searched but its first windows, and
compared in pairs of windows: the difference of the scores with its 95 % interval, negative where the default is better.
`--quick` searches on 16 windows and re-measures on 64. A killed run goes on where it was.
"""

import argparse
import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import command
import torch

from qslm import Budget, find_anatomy, load_checkpoint, make_task, search
from qslm.allocation import Allocation
from qslm.cli.progress import Listener
from qslm.evaluation import Evaluation, Evaluator, Ledger
from qslm.search import Options
from qslm.study.folder import LEDGER, STUDY
from qslm.study.identity import identity
from qslm.study.judging import BASELINE
from qslm.study.measuring import Measurements
from qslm.study.subject import Subject
from qslm.tasks.statistics import Kind, compare
from qslm.units import MB, parse_memory

CHECKPOINT, CONTEXT = "spikegpt-mini", 1024
DEFAULT, LITERAL, RIVALS = "knapsack", "literal", ("tpe", "nsga2")
FOLDS = {"": 1, "_tenfold": 10}  # how many times the default's work a rival gets, by the end of its name


@dataclass(frozen=True)
class Case:
    name: str
    memory: str  # share of the float32 tensor bytes
    limit: float
    kind: Kind


CASES = (
    Case("b1", "48.68%", 1.0, "absolute"),
    Case("b2", "48.68%", 4.0, "absolute"),
    Case("b3", "51.11%", 4.0, "absolute"),
    Case("tight", "10%", 0.05, "relative"),
)


class Benchmark:
    """The network, its task on a sample of validation and on all of it, and where the runs are kept."""

    def __init__(self, arguments: argparse.Namespace, progress: Listener) -> None:
        self.prefer, self.mu = arguments.prefer, arguments.mu
        self.output: Path = arguments.output / self.prefer / ("quick" if arguments.quick else "full")
        self.progress = progress
        self.checkpoint = load_checkpoint(CHECKPOINT, progress=progress)
        self.anatomy = find_anatomy(self.checkpoint.model)
        searched, reported, whole = (16, 16, 64) if arguments.quick else (64, 128, None)
        self.sampled = self._task(arguments.data, {"search": searched, "report": reported})
        self.whole = self._task(arguments.data, {"search": whole, "report": 1} if whole else {"report": 1})
        tokens = sum(batch.ids.numel() for batch in self.sampled.batches("search"))
        self.one_evaluation = tokens * len(self.anatomy.blocks)

    def _task(self, data: Path | None, windows: dict[str, int]) -> Any:
        return make_task(
            "wikitext2",
            tokenizer=self.checkpoint.tokenizer,
            config=self.checkpoint.config,
            data=data,
            context=CONTEXT,
            windows=windows,
            progress=self.progress,
        )

    def run(self, case: Case, name: str, evaluations: int | None = None) -> dict[str, Any]:
        """One search, in a folder of its own, and what it cost and found."""
        folder, strategy = self.output / case.name / name, name.partition("_")[0]
        if strategy != DEFAULT:
            self._lend(case, name, folder)
        memory = parse_memory(case.memory, self.anatomy.float32_bytes)
        budget = Budget(memory, case.limit, case.kind, prefer=self.prefer, mu=self.mu)
        options = Options(strategy=strategy, early=strategy == DEFAULT, max_evaluations=evaluations)
        start = time.perf_counter()
        found = search(
            self.checkpoint, self.sampled, budget=budget, output=folder, options=options, progress=self.progress
        )
        study = json.loads((folder / STUDY).read_text())
        tried = [one for one in study["tiers"] if one["tier"] != BASELINE]
        with Ledger.read(folder / LEDGER) as ledger:
            rows = {row.key: row.evaluation for row in ledger.rows("search")}
        measured = [rows[one["key"]] for one in tried]
        work = study["estimate_work"] + sum(one.work for one in measured)
        if strategy != DEFAULT:
            work = len(tried) * self.one_evaluation
        return {
            "work": work,
            "evaluations": len(tried),
            "seconds": sum(one.seconds for one in measured),
            "wall": time.perf_counter() - start,
            "score": self._score(found.search_selected.value, found.allocation),
            "saving": found.selected.saving,
            "bytes": found.selected.bytes,
            "report": {**found.selected.figures.to_dict(), "difference": vars(found.difference)},
            "allocation": found.allocation,
        }

    def _lend(self, case: Case, name: str, folder: Path) -> None:
        """Start from what the same strategy has measured for an earlier case, or shorter; its work is counted again."""
        earlier = [self.output / other.name / name for other in CASES[: CASES.index(case)]]
        shorter = self.output / case.name / name.partition("_")[0]
        ledgers = [run / LEDGER for run in (*reversed(earlier), shorter)]
        known = next((path for path in ledgers if path.exists()), None)
        if known is not None and not (folder / LEDGER).exists():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(known, folder / LEDGER)

    def _score(self, perplexity: float, allocation: Allocation) -> float:
        return perplexity + self.mu * allocation.footprint().tensors / self.anatomy.float32_bytes

    def compare(self, found: dict[str, dict[str, Any]]) -> None:
        """Re-measure what the strategies selected on the whole search split, and add how the default compares."""
        with (
            Ledger.open(
                self.output / "whole" / LEDGER, identity(Subject.of(self.checkpoint), self.whole, self.anatomy)
            ) as ledger,
            Evaluator(self.checkpoint.model, self.anatomy, self.whole, self.progress) as evaluator,
        ):
            measurements = Measurements(ledger, evaluator)
            measured: dict[str, Evaluation] = {}
            for strategy, one in found.items():
                measured[strategy] = measurements.measure(one["allocation"], "search", "whole", strategy)
        for strategy, one in found.items():
            evaluation, allocation = measured[strategy], one.pop("allocation")
            one["whole"] = {
                "value": evaluation.value,
                "windows": len(evaluation.losses.values),
                "score": self._score(evaluation.value, allocation),
            }
            if strategy != DEFAULT:
                paired = compare(self.whole, measured[DEFAULT].losses, evaluation.losses, "absolute")
                shift = found[DEFAULT]["whole"]["score"] - one["whole"]["score"] - paired.loss
                ends = paired.loss + shift, paired.low + shift, paired.high + shift
                one["default_less_this"] = dict(zip(("score", "low", "high"), ends, strict=True))


def run_case(benchmark: Benchmark, case: Case) -> dict[str, Any]:
    """All strategies on one case."""
    found = {DEFAULT: benchmark.run(case, DEFAULT)}
    found[LITERAL] = benchmark.run(case, LITERAL)
    affordable = found[DEFAULT]["work"] / benchmark.one_evaluation
    for rival in RIVALS:
        for name, fold in FOLDS.items():
            found[rival + name] = benchmark.run(case, rival + name, math.ceil(fold * affordable))
    benchmark.compare(found)
    return {"work_ratio": found[LITERAL]["work"] / found[DEFAULT]["work"], "strategies": found}


def summary(cases: dict[str, Any]) -> dict[str, Any]:
    """What is claimed, each with whether it holds."""
    works = [{name: one["work"] for name, one in case["strategies"].items()} for case in cases.values()]
    ratio = sum(work[LITERAL] for work in works) / sum(work[DEFAULT] for work in works)
    against = {
        other: {name: case["strategies"][other]["default_less_this"] for name, case in cases.items()}
        for other in (LITERAL, *(rival + name for rival in RIVALS for name in FOLDS))
    }
    holds = {
        "work_ratio of 20 over all cases": ratio >= 20,
        "work_ratio of 8 in each case": all(case["work_ratio"] >= 8 for case in cases.values()),
        "no worse than literal in any case": all(one["low"] <= 0 for one in against[LITERAL].values()),
        "better than literal in the tight case": against[LITERAL]["tight"]["high"] < 0,
        **{
            f"better than {rival} with {fold} times its work": all(
                one["high"] < 0 for one in against[rival + name].values()
            )
            for rival in RIVALS
            for name, fold in FOLDS.items()
        },
    }
    return {"work_ratio": ratio, "holds": holds}


def show(result: dict[str, Any]) -> None:
    print("| case | strategy | work, in evaluations | evaluations | seconds | file | saving | score | default's less |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, case in result["cases"].items():
        for strategy, one in case["strategies"].items():
            worth = one["work"] / result["one_evaluation"]
            paired = one.get("default_less_this")
            spelt = f"{paired['score']:+.3f} ({paired['low']:+.3f} to {paired['high']:+.3f})" if paired else ""
            print(
                f"| {name} | {strategy} | {worth:.2f} | {one['evaluations']} | {one['seconds']:.0f} | "
                f"{one['bytes'] / MB:.3f} MB | {100 * one['saving']:.2f} % | {one['whole']['score']:.3f} | {spelt} |"
            )
    ratios = ", ".join(f"{name} {case['work_ratio']:.1f}" for name, case in result["cases"].items())
    print(f"literal work over the default's: {result['work_ratio']:.1f} ({ratios})")
    for claim, holds in result["holds"].items():
        print(f"{'holds' if holds else 'FAILS'}: {claim}")


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/search_cost"))
    parser.add_argument("--prefer", choices=("score", "smallest"), default="score", help="what is selected")
    parser.add_argument("--mu", type=float, default=20.0, help="perplexity points per unit of memory ratio")
    parser.add_argument("--quick", action="store_true", help="16 windows of search, 64 of comparison")
    arguments = parser.parse_args()
    with command.listening(parser) as progress:
        benchmark = Benchmark(arguments, progress)
        cases = {case.name: run_case(benchmark, case) for case in CASES}
    result = {
        **summary(cases),
        "cases": cases,
        "prefer": arguments.prefer,
        "mu": arguments.mu,
        "one_evaluation": benchmark.one_evaluation,
        "threads": torch.get_num_threads(),
    }
    (benchmark.output / "result.json").write_text(json.dumps(result, indent=2, default=str))
    command.tell(result, arguments, show)


if __name__ == "__main__":
    main()
