"""The loop of a study: ask, evaluate, record, tell; then select, report and pack."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qslm import artifact
from qslm.allocation import Allocation
from qslm.anatomy import Anatomy, find_anatomy
from qslm.budget import Budget
from qslm.errors import BudgetError, StudyError
from qslm.evaluation import Evaluation, Evaluator, Ledger
from qslm.formats import FLOAT32, Format
from qslm.progress import SILENT, Progress
from qslm.quantizers import RoundedSites
from qslm.search import PRECISIONS, Strategy
from qslm.search.tiered import TEMPLATE, Order
from qslm.study import folder
from qslm.study.checks import Check, check_ground
from qslm.study.judging import BASELINE, Judged, choose, judge, spell_loss
from qslm.study.options import Options
from qslm.study.selection import Pair, Selection, make_selection
from qslm.study.source import LoadedCheckpoint, Source, identity
from qslm.tasks.task import Task
from qslm.units import format_bytes


def search(
    checkpoint: LoadedCheckpoint | nn.Module,
    task: Task,
    *,
    budget: Budget,
    output: Path | str,
    precisions: Sequence[int] = PRECISIONS,
    template: Format = TEMPLATE,
    vectors: Format = FLOAT32,
    signs: bool = True,
    quantizer: str = "clip",
    order: Order = "sensitivity",
    limit: int | None = None,
    progress: Progress = SILENT,
) -> Selection:
    """Search the smallest (or best scored) allocation that keeps a budget, and pack it.

    `output` is the run folder: study.json, ledger.sqlite, selection.json, artifact/. A study that was stopped
    goes on with the same call: what the ledger holds is not measured again. `precisions` (bits), `template`,
    `vectors`, `signs`, `quantizer`, `order` and `limit` are those of `TieredSearch`.

    The network's weights and mode are given back as they were. Raises BudgetError at once on a budget that no
    allocation keeps, StudyError when the network fails a check or nothing is accepted (the ledger stays),
    LedgerError when the folder holds another study or cannot be written, and what the task raises.
    """
    options = Options(tuple(precisions), template, vectors, signs, quantizer, order, limit)
    anatomy = find_anatomy(checkpoint if isinstance(checkpoint, nn.Module) else checkpoint.model)
    options.check_possible(anatomy, budget)
    _check_kind(task, budget)
    source = Source.of(checkpoint)
    belongs = identity(source, task)
    run = Path(output)
    with (
        Ledger.open(run / folder.LEDGER, belongs) as ledger,
        Evaluator(source.model, anatomy, task, progress) as evaluator,
    ):
        study = _Study(run, source, task, budget, options, belongs, ledger, evaluator, progress)
        return study.conduct()


def _check_kind(task: Task, budget: Budget) -> None:
    if budget.kind == "points" and not task.higher_is_better:
        raise BudgetError(f"{task.metric} has no points to drop", "limit its rise: --max-rise 1.0 or --max-rise 2%")


class _Study:
    """One study as it goes."""

    def __init__(
        self,
        run: Path,
        source: Source,
        task: Task,
        budget: Budget,
        options: Options,
        belongs: dict[str, Any],
        ledger: Ledger,
        evaluator: Evaluator,
        progress: Progress,
    ) -> None:
        self.run, self.source, self.task, self.budget, self.options = run, source, task, budget, options
        self.belongs, self.ledger, self.evaluator, self.progress = belongs, ledger, evaluator, progress
        self.anatomy: Anatomy = evaluator.anatomy
        self.used: list[Evaluation] = []
        self.judged: list[Judged] = []
        self.checks: list[Check] = []

    def conduct(self) -> Selection:
        """The whole study."""
        self._record()
        self.checks = check_ground(self.evaluator, self.options.signs)
        for check in self.checks:
            self.progress.message(f"{check.name}: {check.finding}")
        baseline = self._baseline()
        strategy = self.options.strategy(self.anatomy)
        self._estimate(strategy, baseline)
        self._search(strategy, baseline)
        self._record()
        try:
            chosen = choose(self.budget, self.judged, self.task.higher_is_better)
        except StudyError:
            folder.remove(self.run / folder.SELECTION)
            raise
        selection = self._reported(chosen, baseline)
        self._record()
        self._pack(selection.allocation)
        folder.write_json(self.run / folder.SELECTION, selection.to_dict())
        return selection

    def _measure(self, allocation: Allocation, split: str, tier: str, note: str) -> Evaluation:
        """What the ledger holds, or a new evaluation that it holds from now on."""
        found = self.ledger.get(allocation.key, split)
        if found is None:
            found = self.evaluator.measure(allocation, split)
            self.ledger.put(allocation.key, split, allocation.to_json(), tier, note, found)
        self.used.append(found)
        return found

    def _baseline(self) -> Evaluation:
        allocation = Allocation.float32(self.anatomy)
        baseline = self._measure(allocation, "search", BASELINE, "the float network")
        self.judged.append(judge(self.task, self.budget, baseline, baseline, allocation, BASELINE, "the float network"))
        self.progress.message(
            f"baseline: {self.task.metric} {baseline.value:.4f} ({baseline.low:.4f} to {baseline.high:.4f}) on "
            f"{len(baseline.losses.values):,} {self.task.unit}s of the search split, "
            f"{format_bytes(self.source.file_bytes)}"
        )
        return baseline

    def _estimate(self, strategy: Strategy, baseline: Evaluation) -> None:
        most = strategy.maximum_evaluations
        self.progress.message(
            f"at most {most:,} evaluations of about {baseline.seconds:.1f} s, so {most * baseline.seconds / 60:.1f} "
            f"minutes, often half of it; stop at any time, the same command goes on from {self.run}"
        )

    def _search(self, strategy: Strategy, baseline: Evaluation) -> None:
        known = {self.judged[0].allocation.key}
        while (proposal := strategy.ask()) is not None:
            allocation = proposal.allocation
            evaluation = self._measure(allocation, "search", proposal.tier, proposal.note)
            judged = judge(self.task, self.budget, baseline, evaluation, allocation, proposal.tier, proposal.note)
            if allocation.key in known:
                self.used.pop()  # the float network once more, counted as the baseline
            else:
                self.judged.append(judged)
            self._tell_progress(judged)
            strategy.tell(proposal, judged.outcome)

    def _tell_progress(self, judged: Judged) -> None:
        accepted = [one for one in self.judged if one.verdict.accepted and one.tier != BASELINE]
        best = min((one.evaluation.footprint_file for one in accepted), default=None)
        verdict = "accepted" if judged.verdict.accepted else "too large" if judged.verdict.quality_ok else "too lossy"
        self.progress.message(
            f"{len(self.judged) - 1:4d}  {judged.tier:<11} {judged.note:<36} "
            f"{self.task.metric} {judged.evaluation.value:.4f}  "
            f"loss {spell_loss(self.budget, judged.comparison.loss)} "
            f"(bound {spell_loss(self.budget, judged.comparison.bound)})  "
            f"{format_bytes(judged.evaluation.footprint_file)}  {verdict}"
            + (f"; smallest so far {format_bytes(best)}" if best is not None else "")
        )

    def _reported(self, chosen: Judged, baseline: Evaluation) -> Selection:
        """Measure the baseline and the chosen allocation on the report split, once, and conclude."""
        first = self._measure(Allocation.float32(self.anatomy), "report", BASELINE, "the float network")
        second = first
        if chosen.tier != BASELINE:
            second = self._measure(chosen.allocation, "report", chosen.tier, chosen.note)
        return make_selection(
            self.run,
            self.task,
            self.budget,
            chosen,
            Pair(baseline, chosen.evaluation),
            Pair(first, second),
            self.source.file_bytes,
            self.used,
        )

    def _pack(self, allocation: Allocation) -> None:
        self.evaluator.restore()
        state = self.source.model.state_dict()
        state = {name: value.cpu() for name, value in state.items() if isinstance(value, Tensor)}
        sites = RoundedSites(state, allocation)
        artifact.write(
            self.run / folder.ARTIFACT,
            sites,
            allocation,
            config=self.source.config,
            tokenizer_json=self.source.tokenizer_json,
        )

    def _record(self) -> None:
        """Write study.json: all that `select` and the report need beside the ledger."""
        folder.write_json(
            self.run / folder.STUDY,
            {
                "version": folder.VERSION,
                "checkpoint": {
                    "name": self.source.name,
                    "digest": self.source.digest,
                    "bytes": self.source.file_bytes,
                    "config": self.source.config,
                },
                "task": self._task(),
                "budget": vars(self.budget),
                "options": self.options.to_dict(),
                "identity": self.belongs,
                "checks": [vars(check) for check in self.checks],
                "anatomy": folder.anatomy_to_dict(self.anatomy),
                "tiers": [judged.to_dict(number) for number, judged in enumerate(self.judged)],
            },
        )

    def _task(self) -> dict[str, Any]:
        splits = {}
        for split in ("search", "report"):
            found = self.ledger.get(Allocation.float32(self.anatomy).key, split)
            if found is not None:
                splits[split] = {"units": len(found.losses.values), "tokens": found.tokens, **found.details}
        return {
            "name": self.task.name,
            "metric": self.task.metric,
            "higher_is_better": self.task.higher_is_better,
            "unit": self.task.unit,
            "splits": splits,
        }
