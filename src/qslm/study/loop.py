"""The loop of a study: ask, evaluate, record, tell; then select, report and pack."""

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from qslm import folders
from qslm.allocation import Allocation
from qslm.anatomy import Anatomy
from qslm.anatomy.find import find_anatomy
from qslm.budget import Budget
from qslm.errors import StudyError
from qslm.evaluation import Evaluation, Evaluator, Ledger
from qslm.evaluation.density import layouts_by_density
from qslm.evaluation.pool import make_pool
from qslm.evaluation.reconstruction import check_reconstructible
from qslm.progress import SILENT, Progress
from qslm.search import DEFAULT_OPTIONS, Goal, Options, Outcome, Proposal, Strategy, make_strategy
from qslm.study import folder
from qslm.study.accounting import account, write_account
from qslm.study.checks import (
    check_calibration,
    check_ground,
    check_kind,
    check_overlap,
    check_precision,
    check_sample,
    check_spiking,
    check_units,
)
from qslm.study.expecting import estimate, inputs_of, measured_alone
from qslm.study.identity import identity
from qslm.study.judging import BASELINE, Judge, Judged, sampling_groups
from qslm.study.measuring import Measurements
from qslm.study.packing import write_packed
from qslm.study.reconstructing import learned_sites, next_finalist
from qslm.study.record import Record, peak_memory
from qslm.study.refusal import closest_of, nothing_accepted
from qslm.study.selection import Pair, Selection, make_selection
from qslm.study.subject import LoadedCheckpoint, Subject
from qslm.study.telling import Telling
from qslm.tasks.task import Task, as_task

FLOAT_NOTE = "the float network"
WORKERS_PER_CORE = 4  # that may be asked for; a mistyped 100000 would bring the machine down


def search(
    checkpoint: LoadedCheckpoint | nn.Module,
    task: Any,
    *,
    budget: Budget,
    output: Path | str,
    options: Options = DEFAULT_OPTIONS,
    progress: Progress = SILENT,
    workers: int = 1,
    ray: str | None = None,
) -> Selection:
    """Search the smallest (or best scored) allocation that keeps a budget, and pack it.

    `task` is a Task, or anything with its two methods (`as_task`). `output` is the run folder: study.json,
    ledger.sqlite, selection.json, energy.json, artifact/. A study that was stopped goes on with the same call: what the
    ledger holds is not measured again. What an earlier search selected in the folder makes way at the start. No report
    is written: `write_report(output)` does that. After `max_seconds` of the options the search ends with the best so
    far; measuring that whole and on the report split, and packing it, come on top.

    With `workers`, processes of this machine measure batches in parallel; with the address `ray`, actors on a Ray
    cluster do, as many as it has room for unless `workers` are more than one. Each has as many threads as this
    process, so that the selection and its bytes do not depend on their number.

    The network's weights and mode are given back as they were. Raises BudgetError at once on a budget that no
    allocation keeps or the metric cannot have, StudyError when the network fails a check, or when nothing is
    accepted (the ledger stays): what is accepted keeps the budget, and has fewer bytes than the checkpoint's file.
    Raises LedgerError when the folder holds another study or cannot be written, and what the task raises.
    """
    model = checkpoint if isinstance(checkpoint, nn.Module) else checkpoint.model
    run = folders.check(output, "study", StudyError)
    task, anatomy = as_task(task), find_anatomy(model)
    if workers < 1:
        raise StudyError(f"{workers} workers measure nothing.", "Give 1 or more.")
    if ray is None and workers > (most := WORKERS_PER_CORE * (os.cpu_count() or 1)):
        raise StudyError(f"{workers:,} workers are too many for this machine.", f"Give {most} at most.")
    subject = Subject.of(checkpoint)
    check_spiking(anatomy, options)
    options.check_possible(anatomy, budget, subject.file_bytes)
    check_kind(task, budget)
    check_units(task)
    check_sample(task, budget)
    check_precision(model, anatomy)
    if options.reconstruct:
        check_calibration(task)
        check_reconstructible(model, anatomy, task)
    anatomy = layouts_by_density(model, anatomy, task, progress)
    with ExitStack() as open_:
        ledger = open_.enter_context(Ledger.open(run / folder.LEDGER, identity(subject, task, anatomy)))
        inputs = inputs_of(run, ledger, model, anatomy, task, options, progress)
        pool = None
        if workers > 1 or ray is not None:
            count, sent = workers if workers > 1 else None, None if inputs is None else dict(inputs)
            pool = open_.enter_context(make_pool(model, anatomy, task, progress, workers=count, ray=ray, inputs=sent))
        evaluator = open_.enter_context(Evaluator(model, anatomy, task, progress, inputs=inputs))
        question = Question(run, subject, budget, options)
        return _Study(question, Measurements(ledger, evaluator, pool), progress).conduct()


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
        self.record = Record(question.subject, self.task, self.anatomy, question.budget, question.options)
        self.tell = Telling(self.task, question.budget, progress)
        self.started = time.monotonic()

    def conduct(self) -> Selection:
        """The whole study."""
        run, budget, options = self.question.run, self.question.budget, self.question.options
        folder.remove_selection(run)
        self._record()
        self.record.checks = check_ground(self.measurements.evaluator, options.signs)
        self.record.checks += check_overlap(self.task)
        for check in self.record.checks:
            self.tell.message(f"{check.name}: {check.finding}")
        baseline = self._baseline()
        check_kind(self.task, budget, baseline.losses)
        check_sample(self.task, budget, baseline.losses)
        judge, measuring = self._judge(baseline), peak_memory()
        self._foresee(baseline)
        strategy = self._strategy(baseline, judge)
        self._foresee_memory(measuring)
        self._search(strategy, judge)
        self._reconstruct(judge)
        chosen = self._chosen(judge)
        self.record.ended = True
        self._record()
        if chosen is None:
            folder.remove_artifact(run)
            raise nothing_accepted(judge, self.judged.values(), self.record.stopped)
        selection = self._reported(chosen, baseline)
        self._record()
        accounted = account(self.measurements.evaluator, selection.allocation, self.judged.values())
        selection = replace(selection, packed=self._pack(selection.allocation))
        folder.write_json(run / folder.SELECTION, selection.to_dict())
        self._leave(accounted, selection.allocation)
        return selection

    # ---- before the search -------------------------------------------------------------------------------------

    def _baseline(self) -> Evaluation:
        baseline = self.measurements.measure(self.floats, "search", BASELINE, FLOAT_NOTE)
        self.tell.baseline(baseline, self.question.subject.file_bytes)
        return baseline

    def _judge(self, baseline: Evaluation) -> Judge:
        """Who judges the evaluations, and lets them end early where the options say so.

        The first verdict on an allocation is kept: the baseline's on the float network.
        """
        judge = Judge(self.task, self.question.budget, baseline, self.question.subject.file_bytes)
        if self.question.options.early:
            places = self.measurements.evaluator.places("search")
            groups, looks = sampling_groups(places, self.task.exchangeable), max(len(places) - 1, 1)
            self.record.groups, self.record.looks = None if self.task.exchangeable else groups.tolist(), looks
            judge = replace(judge, groups=groups, looks=looks)
        self.judged[self.floats.key] = judge.judge(baseline, self.floats, BASELINE, FLOAT_NOTE)
        return judge

    def _strategy(self, baseline: Evaluation, judge: Judge) -> Strategy:
        options, costs = self.question.options, None
        goal = self._goal(baseline, replace(self.question.budget, max_bytes=judge.most_bytes))
        if options.strategy == "knapsack":
            expected = estimate(self.measurements, options, self.progress)
            alone = measured_alone(self.measurements, options, judge, goal)
            self.record.estimate_work, costs = expected.work, expected.costs.corrected(alone)
            self.tell.message(
                f"expected losses: of {len(options.matrices(self.anatomy))} matrices in {len(options.formats)} formats "
                f"from {expected.samples} samples, {expected.tokens:,} tokens forward and backward"
                + (f", corrected by {len(alone):,} that were measured alone" if alone else "")
            )
        return make_strategy(options.strategy, self.anatomy, options, goal, costs)

    def _goal(self, baseline: Evaluation, budget: Budget) -> Goal:
        return Goal(budget, baseline.value, self.task.higher_is_better)

    def _foresee(self, baseline: Evaluation) -> None:
        """Say how much there is to do, before anything but the baseline is done."""
        options, goal = self.question.options, self._goal(baseline, self.question.budget)
        strategy = make_strategy(options.strategy, self.anatomy, options, goal)
        places, share = self.task.places("report"), None
        if places is not None:
            share = sum(map(len, places)) / max(len(baseline.losses.values), 1)
        most = strategy.maximum_evaluations + options.reconstruct
        self.record.maximum_evaluations = most
        self.record.report_seconds = None if share is None else share * baseline.seconds
        self._record()
        learning = ["the expected losses"] if options.strategy == "knapsack" else []
        learning += [f"learning the rounding of {options.reconstruct}"] if options.reconstruct else []
        self.tell.plan(most, baseline, share, learning, self.question.run)

    def _foresee_memory(self, measuring: int) -> None:
        """Say how much memory the search takes; `measuring` the float network took this much."""
        cache = self.measurements.evaluator.chain.cache
        evaluations = (self.record.maximum_evaluations or 0) + 1
        kept = min(cache.bytes_bound, cache.bytes * evaluations) if cache.bytes else cache.bytes_bound
        self.tell.memory(measuring, self.anatomy.float32_bytes, kept, self.measurements.pool is not None)

    # ---- the search --------------------------------------------------------------------------------------------

    def _search(self, strategy: Strategy, judge: Judge) -> None:
        """Ask until there is nothing left to try, or no time."""
        options = self.question.options
        while (proposal := strategy.ask()) is not None:
            if self._late() and len(self.judged) > 1:  # one is always measured, or there is no best so far
                self._out_of_time()
                return
            strategy.tell(proposal, self._outcome(proposal, judge))
        if strategy.limited:
            self.record.stopped = "evaluations"
            self.tell.stopped("evaluations", options.max_evaluations or 0)

    def _out_of_time(self) -> None:
        self.record.stopped = "seconds"
        self.tell.stopped("seconds", self.question.options.max_seconds or 0)

    def _late(self) -> bool:
        most = self.question.options.max_seconds
        return most is not None and time.monotonic() - self.started > most

    def _reconstruct(self, judge: Judge) -> None:
        """Learn the rounding of the finalists, one after the other, and measure each."""
        for _ in range(self.question.options.reconstruct):
            finalist = next_finalist(judge, self.judged.values())
            if finalist is None:
                self.tell.message("reconstruction: nothing that was measured could be preferred to what is chosen")
                return
            if self._late():
                self._out_of_time()
                return
            try:
                learned = learned_sites(self.question.run, self.measurements, finalist.allocation, self.progress)
            except StudyError as error:  # learning has failed; what was searched still stands
                self.tell.message(f"{error.problem} The search ends without it.")
                return
            allocation, note = finalist.allocation.reconstructed(), finalist.note
            self.measurements.evaluator.learned[str(allocation.quantizer)] = learned
            evaluation = self.measurements.measure(allocation, "search", "reconstruct", note)
            self._keep(judge.judge(evaluation, allocation, "reconstruct", note))

    def _outcome(self, proposal: Proposal, judge: Judge) -> Outcome:
        allocation = proposal.allocation
        settling = None if allocation.key in self.judged else judge.settling(self.judged.values(), allocation)
        if settling is not None:
            self.tell.settled(proposal, settling)
            return replace(settling.outcome, memory_ok=allocation.footprint().file <= judge.most_bytes)
        stop = judge.stop(allocation, judge.choose(one for one in self.judged.values() if one.complete))
        evaluation = self.measurements.measure(allocation, "search", proposal.tier, proposal.note, stop)
        judged = judge.judge(evaluation, allocation, proposal.tier, proposal.note)
        self._keep(self.judged.setdefault(allocation.key, judged))
        return judged.outcome

    def _chosen(self, judge: Judge) -> Judged | None:
        """The preferred one of what is accepted; what ended early is measured whole before it can be it.

        So is what comes closest where nothing is accepted: the error that names it says what would let it in.
        """
        while True:
            chosen = judge.choose(self.judged.values())
            named = chosen or closest_of(judge, self.judged.values())
            if named is None or named.complete:
                return chosen
            whole = self.measurements.measure(named.allocation, "search", named.tier, named.note)
            self._keep(judge.judge(whole, named.allocation, named.tier, named.note))

    def _keep(self, judged: Judged) -> None:
        """Keep a verdict, and let people see it, here and in study.json."""
        self.judged[judged.allocation.key] = judged
        self.tell.evaluation(judged, self.judged.values())
        self._record()

    # ---- after the search --------------------------------------------------------------------------------------

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
            self.record.stopped,
        )

    def _pack(self, allocation: Allocation) -> str:
        """Pack the model into the run folder; the sha256 of its file."""
        self.measurements.evaluator.restore()
        inputs, learned = self.measurements.evaluator.inputs, self.measurements.evaluator.learned
        return write_packed(self.question.run / folder.ARTIFACT, self.question.subject, allocation, inputs, learned)

    def _leave(self, accounted: Mapping[str, Any], allocation: Allocation) -> None:
        """Write energy.json, or say why there is no account; the search does not fail for it."""
        try:
            write_account(self.question.run, allocation.key, self.question.subject.digest, accounted)
        except StudyError as error:
            accounted = {"missing": error.problem}
        if "missing" in accounted:
            self.tell.message(f"no account of energy: {accounted['missing']}")

    def _record(self) -> None:
        """Write study.json: all that `select`, `status` and the report need beside the ledger."""
        folder.write_json(
            self.question.run / folder.STUDY, self.record.to_dict(self.measurements, self.judged.values())
        )
