"""What a study tells people while it goes."""

from collections.abc import Collection, Sequence

from qslm.budget import Budget, Kind, spell_loss
from qslm.evaluation import Evaluation
from qslm.progress import Progress
from qslm.search import Proposal
from qslm.study.judging import BASELINE, Judged
from qslm.study.record import peak_memory
from qslm.study.selection import Stopped
from qslm.tasks.task import Task
from qslm.units import format_bytes, spell_duration


class Telling:
    """The messages of one study, in the order in which they come."""

    def __init__(self, task: Task, budget: Budget, progress: Progress) -> None:
        self._task, self._budget, self._progress = task, budget, progress

    def message(self, text: str) -> None:
        """Any other message."""
        self._progress.message(text)

    def baseline(self, found: Evaluation, file_bytes: int) -> None:
        """What the float network measures."""
        self.message(
            f"baseline: {self._task.metric} {found.value:.4f} ({found.low:.4f} to {found.high:.4f}) on "
            f"{len(found.losses.values):,} {self._task.unit}s of the search split, {format_bytes(file_bytes)}"
        )

    def plan(
        self, most: int, baseline: Evaluation, report_share: float | None, learning: Sequence[str], run: object
    ) -> None:
        """How many evaluations there are at most, and how long each takes where it does not end early.

        report_share: the size of the report split as a share of the search split's, where it is known. learning: what
        of the calibration text takes its own time, with a progress bar of its own.
        """
        besides = f", beside {' and '.join(learning)}" if learning else ""
        report = ""
        if report_share is not None:
            tokens, seconds = report_share * baseline.tokens, report_share * baseline.seconds
            report = f"; then the report split twice, about {tokens:,.0f} tokens and {spell_duration(seconds)} each"
        self.message(
            f"at most {most:,} evaluations of {baseline.tokens:,} tokens, {spell_duration(baseline.seconds)} each, so "
            f"{spell_duration(most * baseline.seconds)}, usually far less{besides}{report}; stop at any time, the same "
            f"command goes on from {run}"
        )

    def memory(self, measuring: int, float32_bytes: int, kept: int, workers: bool) -> None:
        """The most memory that this process will have had.

        measuring: its peak once the float network was measured. From now on the originals lie beside the rounded
        weights, and blocks' outputs are kept; it may have been more before, for the expected losses.
        """
        peak = max(peak_memory(), measuring + float32_bytes + kept)
        where = " in this process, the workers have their own" if workers else ""
        self.message(f"memory: {format_bytes(peak)} at most{where}, {format_bytes(kept)} of it for kept activations")

    def settled(self, proposal: Proposal, by: Judged) -> None:
        """An allocation that need not be measured."""
        self.message(f"      {proposal.tier:<11} {proposal.note:<36} settled by {by.note!r}")

    def evaluation(self, judged: Judged, all_: Collection[Judged]) -> None:
        """One evaluation, the last of `all_`, which begin with the baseline."""
        kind, units, baseline = self._budget.kind, len(judged.evaluation.losses.values), next(iter(all_)).evaluation
        whole = len(baseline.losses.values)
        expected = expected_value(self._task, kind, baseline.value, judged.comparison.loss)
        value = f"{judged.evaluation.value:.4f}" if judged.complete else f"about {expected:.4f}"
        share = "" if judged.complete else f", foretold from {units:,} of {whole:,} {self._task.unit}s"
        accepted = [one for one in all_ if one.verdict.accepted and one.tier != BASELINE]
        smallest = min((one.evaluation.footprint_file for one in accepted), default=None)
        self.message(
            f"{len(all_) - 1:4d}  {judged.tier:<11} {judged.note:<36} "
            f"{self._task.metric} {value}  "
            f"loss {spell_loss(kind, judged.comparison.loss, signed=False)} "
            f"(bound {spell_loss(kind, judged.comparison.bound, signed=False)})  "
            f"{format_bytes(judged.evaluation.footprint_file)}  {_verdict(judged)}{share}"
            + (f"; smallest so far {format_bytes(smallest)}" if smallest is not None else "")
        )

    def stopped(self, by: Stopped, most: float) -> None:
        """The limit that ended the search."""
        self.message(
            f"stopped: --max-{by} {most:g} is reached, and the search had more to try; with a higher one the same "
            "command goes on"
        )


def expected_value(task: Task, kind: Kind, baseline: float, loss: float) -> float:
    """What the metric is expected to be on all units: the baseline's, with a loss in the unit of `kind`.

    Of an evaluation that ended early the metric of the units seen is not comparable with the baseline's of all.
    """
    change = {"points": loss / 100, "relative": loss * abs(baseline)}.get(kind, loss)
    return baseline - change if task.higher_is_better else baseline + change


def _verdict(judged: Judged) -> str:
    verdict = judged.verdict
    if verdict.undecided:
        return "worse score"
    return "accepted" if verdict.accepted else "too large" if verdict.quality_ok else "too lossy"
