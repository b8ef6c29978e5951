"""How often an evaluation that ends early decides as the whole one would, on recorded studies, and what it saves.

    python benchmarks/foretelling.py RUN [RUN ...] [--orders 20] [--json]

RUN are folders of studies whose evaluations are whole (`--whole`, or the literal searches of search_cost.py). Each
recorded allocation is taken again as if its batches came in random orders, under several limits, by the bound and by
the point; after each batch the decision is foretold as in a search. Wrong is what the fixed-size rule decides otherwise
on the whole split.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import command
import numpy as np

from qslm.evaluation import Ledger, Row
from qslm.study.folder import LEDGER, STUDY
from qslm.study.judging import BASELINE
from qslm.study.recorded import recorded_task, source_of
from qslm.tasks.foretelling import foretell
from qslm.tasks.statistics import Kind, compare
from qslm.tasks.task import Losses, Task

LIMITS: dict[Kind, tuple[float, ...]] = {
    "absolute": (0.3, 0.5, 1.0, 2.0, 4.0),
    "relative": (0.01, 0.02, 0.05, 0.1),
    "points": (0.5, 1.0, 2.0, 5.0),
}
UNITS_OF_A_BATCH = {"window": 4, "sentence": 64}


@dataclass
class Tally:
    """What was asked, and how it went; `used` are shares of the units."""

    asked: int = 0
    foretold: int = 0
    wrong: int = 0
    used: float = 0.0

    def to_dict(self) -> dict[str, float]:
        return {
            "asked": self.asked,
            "foretold": self.foretold,
            "wrong": self.wrong,
            "wrong_share": self.wrong / max(self.asked, 1),
            "used": self.used / max(self.asked, 1),
        }


def replay(task: Task, rows: list[Row], orders: int) -> Tally:
    """Every allocation of a study under every limit and rule, in random orders of its batches."""
    baseline = next(row.evaluation.losses for row in rows if row.tier == BASELINE)
    tally, generator, units = Tally(), np.random.default_rng(0), len(baseline.values)
    size = min(UNITS_OF_A_BATCH.get(task.unit, 16), max(units // 8, 1))
    for row in rows:
        losses = row.evaluation.losses
        if row.tier == BASELINE or not row.evaluation.complete or not np.isfinite(losses.values).all():
            continue
        for _ in range(orders):
            batches = np.array_split(generator.permutation(units), max(units // size, 2))
            kinds: tuple[Kind, ...] = ("points",) if task.higher_is_better else ("absolute", "relative")
            for kind in kinds:
                ask(task, losses, baseline, kind, batches, tally)
    return tally


def ask(task: Task, losses: Losses, baseline: Losses, kind: Kind, batches: list[Any], tally: Tally) -> None:
    whole, groups = compare(task, losses, baseline, kind), np.arange(len(baseline.values))
    for limit in LIMITS[kind]:
        for decision, number in (("bound", whole.bound), ("point", whole.loss)):
            rule: dict[str, Any] = {"kind": kind, "decision": decision, "limit": limit, "groups": groups}
            found, seen = None, np.zeros(0, np.int64)
            for batch in batches[:-1]:
                seen = np.sort(np.concatenate((seen, batch)))
                found = foretell(task, losses.take(seen), baseline, **rule, looks=len(batches) - 1)
                if found is not None:
                    break
            tally.asked += 1
            tally.foretold += found is not None
            tally.wrong += found is not None and found != (number <= limit)
            tally.used += 1.0 if found is None else len(seen) / len(groups)


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--orders", type=int, default=20)
    arguments = parser.parse_args()
    found = {}
    for run in arguments.runs:
        with Ledger.read(run / LEDGER) as ledger:
            task = recorded_task(json.loads((run / STUDY).read_text())["task"], source_of(ledger.identity))
            found[str(run)] = replay(task, ledger.rows("search"), arguments.orders).to_dict()
    command.tell(found, arguments, show)


def show(found: dict[str, Any]) -> None:
    """The table."""
    print("| study | asked | foretold | wrong | units used |\n| --- | --- | --- | --- | --- |")
    for name, one in found.items():
        share = f"{one['wrong']} ({100 * one['wrong_share']:.2f} %)"
        print(f"| {name} | {one['asked']:,} | {one['foretold']:,} | {share} | {100 * one['used']:.0f} % |")


if __name__ == "__main__":
    main()
