"""The answer of a study: what was selected, what it costs and saves, and what the report split says of it."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qslm.allocation import Allocation
from qslm.budget import Budget, Conclusion, Kind, conclude
from qslm.evaluation import Evaluation
from qslm.study.judging import Judged, paired
from qslm.tasks.task import Task

Split = Literal["report", "search"]
Stopped = Literal["evaluations", "seconds"]  # the limit that ended a search


@dataclass(frozen=True)
class Figures:
    """A metric with its two-sided 95 % interval, and the bytes of the model file."""

    metric: str
    value: float
    low: float
    high: float
    bytes: int

    @classmethod
    def of(cls, evaluation: Evaluation, file_bytes: int) -> "Figures":
        """The figures of an evaluation, for a model file of that size."""
        return cls(evaluation.metric, evaluation.value, evaluation.low, evaluation.high, file_bytes)

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values."""
        names = ("metric", "value", "low", "high", "bytes")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Selected:
    """The selected allocation.

    saving: share of the float32 tensor bytes that its tensors save; saving_file: share of the checkpoint's
    file that its file saves; score: Eq. 1 on the same split as `figures`, with the budget's mu.
    """

    figures: Figures
    tensor_bytes: int
    saving: float
    saving_file: float
    score: float
    tier: str
    note: str

    @property
    def value(self) -> float:
        """The metric, on the split that its interval is of."""
        return self.figures.value

    @property
    def bytes(self) -> int:
        """The bytes of the model file."""
        return self.figures.bytes


@dataclass(frozen=True)
class Difference:
    """How much worse the selected is than the baseline, in the unit of `kind`, with its two-sided interval.

    conclusion: "met", "not shown", "broken" or "no limit" from the report split; "not reported" where the
    selected allocation was never measured on it.
    """

    split: Split
    loss: float
    low: float
    high: float
    bound: float
    kind: Kind
    limit: float | None
    conclusion: Conclusion | Literal["not reported"]


@dataclass(frozen=True)
class Foretold:
    """An allocation whose evaluation ended early and is foretold to keep the budget; `bytes` of its model file."""

    key: str
    note: str
    bytes: int


@dataclass(frozen=True, eq=False)
class Selection:
    """What a study ends with, or what its ledger answers under another budget.

    `baseline`, `selected` and `difference` are of the report split where both were measured on it, else of the
    search split, as `difference.split` says; the `search_` fields are of the search split. `packed` is the sha256
    of the packed model; None where the selected allocation is not the one that was packed. `evaluations`,
    `tokens_forwarded` and `seconds` count what the answer was drawn from: of a search all that it asked for, whether
    it was measured then or by an earlier run in the same folder; of `select` everything in the ledger. `stopped` is
    the limit that ended the search where it had more to try. `source` says where the data was found. `undecided` counts
    the evaluations that ended early under another budget and might be the answer under this one, `foretold` is one that
    is foretold to keep it and is smaller than the selected: a search measures them whole, `select` cannot.
    """

    run: Path
    budget: Budget
    allocation: Allocation
    baseline: Figures
    selected: Selected
    difference: Difference
    search_baseline: Figures
    search_selected: Figures
    search_difference: Difference
    packed: str | None
    stopped: Stopped | None
    evaluations: int
    tokens_forwarded: int
    seconds: float
    source: str = ""
    undecided: int = 0
    foretold: Foretold | None = None

    @property
    def artifact(self) -> Path:
        """The folder of the packed model, which is that of the search itself."""
        return self.run / "artifact"

    def to_dict(self) -> dict[str, Any]:
        """The content of selection.json, still with numbers that may be infinite."""
        chosen = self.selected
        return {
            "baseline": self.baseline.to_dict(),
            "selected": {
                **chosen.figures.to_dict(),
                "tensor_bytes": chosen.tensor_bytes,
                "saving": chosen.saving,
                "saving_file": chosen.saving_file,
                "score": chosen.score,
                "tier": chosen.tier,
                "note": chosen.note,
                "key": self.allocation.key,
                "allocation": {
                    "quantizer": self.allocation.named_quantizers,
                    "sites": {site.name: str(fmt) for site, fmt in self.allocation.items()},
                },
            },
            "difference": vars(self.difference),
            "search": {
                "baseline": self.search_baseline.to_dict(),
                "selected": self.search_selected.to_dict(),
                "difference": vars(self.search_difference),
            },
            "source": self.source,
            "budget": vars(self.budget),
            "artifact": {"sha256": self.packed},
            "stopped": self.stopped,
            "evaluations": self.evaluations,
            "tokens_forwarded": self.tokens_forwarded,
            "seconds": self.seconds,
            "undecided": self.undecided,
            "foretold": None if self.foretold is None else vars(self.foretold),
        }


@dataclass(frozen=True, eq=False)
class Pair:
    """The evaluations of the baseline and of the selected allocation on one split."""

    baseline: Evaluation
    selected: Evaluation


def make_selection(
    run: Path,
    task: Task,
    budget: Budget,
    chosen: Judged,
    search: Pair,
    report: Pair | None,
    checkpoint_bytes: int,
    evaluations: Collection[Evaluation],
    stopped: Stopped | None,
) -> Selection:
    """Put the answer together. `report` is None where the chosen allocation was not measured on that split."""
    pair = search if report is None else report
    difference = _difference(task, budget, chosen, pair, "report" if report else "search")
    footprint = chosen.allocation.footprint()
    figures = Figures.of(pair.selected, footprint.file)
    selected = Selected(
        figures,
        footprint.tensors,
        1 - chosen.memory_ratio,
        1 - footprint.file / checkpoint_bytes,
        budget.score(figures.value, chosen.memory_ratio, task.higher_is_better),
        chosen.tier,
        chosen.note,
    )
    return Selection(
        run,
        budget,
        chosen.allocation,
        Figures.of(pair.baseline, checkpoint_bytes),
        selected,
        difference,
        Figures.of(search.baseline, checkpoint_bytes),
        Figures.of(search.selected, footprint.file),
        _difference(task, budget, chosen, search, "search"),
        None,
        stopped,
        len(evaluations),
        sum(evaluation.tokens for evaluation in evaluations),
        sum(evaluation.seconds for evaluation in evaluations),
        task.source,
    )


def _difference(task: Task, budget: Budget, chosen: Judged, pair: Pair, split: Split) -> Difference:
    found = paired(task, budget, pair.baseline, pair.selected, chosen.allocation)
    conclusion = conclude(found.loss, found.low, found.high, budget.max_loss) if split == "report" else "not reported"
    return Difference(split, found.loss, found.low, found.high, found.bound, budget.kind, budget.max_loss, conclusion)
