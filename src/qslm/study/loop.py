"""The loop of a study: ask, evaluate, record, tell; then select, report and pack."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from qslm.allocation import Allocation
from qslm.anatomy import Anatomy, find_anatomy
from qslm.budget import Budget, spell_loss
from qslm.errors import AllocationError
from qslm.evaluation import Evaluation, Evaluator, Ledger
from qslm.progress import SILENT, Progress
from qslm.quantizers import QUANTIZERS
from qslm.search import DEFAULT_OPTIONS, Options, Strategy, TieredSearch
from qslm.study import folder
from qslm.study.checks import Check, check_ground, check_precision
from qslm.study.identity import identity
from qslm.study.judging import BASELINE, Judge, Judged, check_kind, check_sample
from qslm.study.measuring import Measurements
from qslm.study.packing import write_packed
from qslm.study.refusal import nothing_accepted
from qslm.study.selection import Pair, Selection, make_selection
from qslm.study.subject import LoadedCheckpoint, Subject
from qslm.tasks.task import Task, as_task
from qslm.units import format_bytes

FLOAT_NOTE = "the float network"


def spell_duration(seconds: float) -> str:
    """A time in words: `12 s`, `3.4 minutes`."""
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.1f} minutes"


def search(
    checkpoint: LoadedCheckpoint | nn.Module,
    task: Any,
    *,
    budget: Budget,
    output: Path | str,
    options: Options = DEFAULT_OPTIONS,
    progress: Progress = SILENT,
) -> Selection:
    """Search the smallest (or best scored) allocation that keeps a budget, and pack it.

    `task` is a Task, or anything with its two methods (`as_task`). `output` is the run folder: study.json,
    ledger.sqlite, selection.json, artifact/. A study that was stopped goes on with the same call: what the ledger
    holds is not measured again. What an earlier search selected in the folder makes way at the start. No report is
    written: `write_report(output)` does that.

    The network's weights and mode are given back as they were. Raises BudgetError at once on a budget that no
    allocation keeps or the metric cannot have, StudyError when the network fails a check, or when nothing is
    accepted (the ledger stays): what is accepted keeps the budget, and has fewer bytes than the checkpoint's file.
    Raises LedgerError when the folder holds another study or cannot be written, and what the task raises.
    """
    model = checkpoint if isinstance(checkpoint, nn.Module) else checkpoint.model
    task, anatomy = as_task(task), find_anatomy(model)
    options.check_possible(anatomy, budget)
    check_kind(task, budget)
    if options.quantizer not in QUANTIZERS:
        raise AllocationError(f"There is no quantizer {options.quantizer!r}.", f"There are {', '.join(QUANTIZERS)}.")
    check_precision(model, anatomy)
    subject = Subject.of(checkpoint)
    run = Path(output)
    with (
        Ledger.open(run / folder.LEDGER, identity(subject, task)) as ledger,
        Evaluator(model, anatomy, task, progress) as evaluator,
    ):
        question = Question(run, subject, budget, options)
        return _Study(question, Measurements(ledger, evaluator), progress).conduct()


@dataclass(frozen=True, eq=False)
class Question:
    """What a study is asked, and where it keeps the answer."""

    run: Path
    subject: Subject
    budget: Budget
    options: Options


class _Study:
    """One study as it goes."""

    def __init__(self, question: Question, measurements: Measurements, progress: Progress) -> None:
        self.question, self.measurements, self.progress = question, measurements, progress
        self.task: Task = measurements.evaluator.task
        self.anatomy: Anatomy = measurements.evaluator.anatomy
        self.floats = Allocation.float32(self.anatomy)
        self.judged: dict[str, Judged] = {}
        self.checks: list[Check] = []
        self.limited = False

    def conduct(self) -> Selection:
        """The whole study."""
        run, budget = self.question.run, self.question.budget
        folder.remove_selection(run)
        self._record()
        self.checks = check_ground(self.measurements.evaluator, self.question.options.signs)
        for check in self.checks:
            self.progress.message(f"{check.name}: {check.finding}")
        baseline = self._baseline()
        judge = Judge(self.task, budget, baseline, self.question.subject.file_bytes)
        check_kind(self.task, budget, baseline.losses)
        check_sample(self.task, budget, baseline.losses)
        strategy = TieredSearch(self.anatomy, self.question.options)
        self._estimate(strategy, baseline)
        self._search(strategy, judge)
        self._record()
        chosen = judge.choose(self.judged.values())
        if chosen is None:
            folder.remove_artifact(run)
            raise nothing_accepted(judge, self.judged.values(), self.limited)
        selection = self._reported(chosen, baseline)
        self._record()
        selection = replace(selection, packed=self._pack(selection.allocation))
        folder.write_json(run / folder.SELECTION, selection.to_dict())
        return selection

    def _baseline(self) -> Evaluation:
        baseline = self.measurements.measure(self.floats, "search", BASELINE, FLOAT_NOTE)
        self.progress.message(
            f"baseline: {self.task.metric} {baseline.value:.4f} ({baseline.low:.4f} to {baseline.high:.4f}) on "
            f"{len(baseline.losses.values):,} {self.task.unit}s of the search split, "
            f"{format_bytes(self.question.subject.file_bytes)}"
        )
        return baseline

    def _estimate(self, strategy: Strategy, baseline: Evaluation) -> None:
        most = strategy.maximum_evaluations
        self.progress.message(
            f"at most {most:,} evaluations of about {baseline.seconds:.1f} s, so "
            f"{spell_duration(most * baseline.seconds)}, usually far less; stop at any time, the same command goes on "
            f"from {self.question.run}"
        )

    def _search(self, strategy: Strategy, judge: Judge) -> None:
        """Ask until there is nothing left to try.

        The first verdict on an allocation is kept: the baseline's on the float network.
        """
        self.judged[self.floats.key] = judge.judge(judge.baseline, self.floats, BASELINE, FLOAT_NOTE)
        while (proposal := strategy.ask()) is not None:
            allocation, tier, note = proposal.allocation, proposal.tier, proposal.note
            evaluation = self.measurements.measure(allocation, "search", tier, note)
            judged = judge.judge(evaluation, allocation, tier, note)
            self.judged.setdefault(allocation.key, judged)
            self._tell_progress(judged)
            strategy.tell(proposal, judged.outcome)
        self.limited = strategy.limited
        if self.limited:
            self.progress.message(
                f"stopped: --limit {self.question.options.limit} is reached, and the search had more to try; with a "
                "higher one the same command goes on"
            )

    def _tell_progress(self, judged: Judged) -> None:
        kind = self.question.budget.kind
        accepted = [one for one in self.judged.values() if one.verdict.accepted and one.tier != BASELINE]
        best = min((one.evaluation.footprint_file for one in accepted), default=None)
        verdict = "accepted" if judged.verdict.accepted else "too large" if judged.verdict.quality_ok else "too lossy"
        self.progress.message(
            f"{len(self.judged) - 1:4d}  {judged.tier:<11} {judged.note:<36} "
            f"{self.task.metric} {judged.evaluation.value:.4f}  "
            f"loss {spell_loss(kind, judged.comparison.loss, signed=False)} "
            f"(bound {spell_loss(kind, judged.comparison.bound, signed=False)})  "
            f"{format_bytes(judged.evaluation.footprint_file)}  {verdict}"
            + (f"; smallest so far {format_bytes(best)}" if best is not None else "")
        )

    def _reported(self, chosen: Judged, baseline: Evaluation) -> Selection:
        """Measure the baseline and the chosen allocation on the report split, once, and conclude."""
        first = self.measurements.measure(self.floats, "report", BASELINE, FLOAT_NOTE)
        second = self.measurements.measure(chosen.allocation, "report", chosen.tier, chosen.note)
        return make_selection(
            self.question.run,
            self.task,
            self.question.budget,
            chosen,
            Pair(baseline, chosen.evaluation),
            Pair(first, second),
            self.question.subject.file_bytes,
            self.measurements.used.values(),
            "limit" if self.limited else None,
        )

    def _pack(self, allocation: Allocation) -> str:
        """Pack the model into the run folder; the sha256 of its file."""
        self.measurements.evaluator.restore()
        return write_packed(self.question.run / folder.ARTIFACT, self.question.subject, allocation)

    def _record(self) -> None:
        """Write study.json: all that `select` and the report need beside the ledger."""
        folder.write_json(
            self.question.run / folder.STUDY,
            {
                "version": folder.VERSION,
                "checkpoint": self.question.subject.to_dict(),
                "task": self._task(),
                "budget": vars(self.question.budget),
                "options": self.question.options.to_dict(),
                "identity": self.measurements.ledger.identity,
                "checks": [vars(check) for check in self.checks],
                "stopped": "limit" if self.limited else None,
                "anatomy": folder.anatomy_to_dict(self.anatomy),
                "tiers": [judged.to_dict(number) for number, judged in enumerate(self.judged.values())],
            },
        )

    def _task(self) -> dict[str, Any]:
        splits = {}
        for split in ("search", "report"):
            found = self.measurements.known(self.floats, split)
            if found is not None:
                splits[split] = {"units": len(found.losses.values), "tokens": found.tokens, **found.details}
        task = self.task
        described = {"name": task.name, "metric": task.metric, "higher_is_better": task.higher_is_better}
        return {**described, "unit": task.unit, "splits": splits}
