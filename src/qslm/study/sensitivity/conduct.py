"""The loop of a study of sensitivity: round one part, measure, keep, and on to the next."""

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qslm import folders
from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.errors import StudyError
from qslm.evaluation import Evaluation, Evaluator, Ledger, reset_state
from qslm.evaluation.density import layouts_by_density
from qslm.evaluation.drift import Drift, Watch
from qslm.formats import FLOAT32, Format
from qslm.progress import SILENT, Progress
from qslm.search import DEFAULT_OPTIONS, Options
from qslm.study import folder
from qslm.study.checks import check_ground, check_precision
from qslm.study.expecting import inputs_of
from qslm.study.identity import identity
from qslm.study.judging import ALONE, BASELINE, EXACT
from qslm.study.loop import FLOAT_NOTE
from qslm.study.measuring import Measurements
from qslm.study.sensitivity.lines import FILE, VERSION, Line, Sensitivity, drift_from_dict, drift_to_dict
from qslm.study.sensitivity.parts import Level, Part, find_parts
from qslm.study.subject import LoadedCheckpoint, Subject
from qslm.tasks.statistics import Comparison, Kind, compare, is_proportion
from qslm.tasks.task import Task, as_task


def sensitivity(
    checkpoint: LoadedCheckpoint | nn.Module,
    task: Any,
    *,
    output: Path | str,
    options: Options = DEFAULT_OPTIONS,
    level: Level = "all",
    progress: Progress = SILENT,
) -> Sensitivity:
    """Round every part of a network, one at a time, to every width of the options' precisions, and measure each.

    The parts are blocks, modules, sites, and all attention blocks together (`find_parts`); all else stays float32, or
    as the options' vectors and signs say. `task` is a Task, or anything with its two methods; its search split is
    measured. `output` is a run folder: the evaluations go into its ledger, where every search of the same checkpoint
    and task finds them, and `sensitivity.json` is written after each. A study that was stopped goes on with the same
    call. Parts with the same sites are measured once. Derived from QSLM III-A, whose text gives no more than figures.

    The network's weights and mode are given back. Raises AllocationError for an unknown level, StudyError
    when the network fails a check, LedgerError when the folder holds another study, and what the task raises.
    """
    model = checkpoint if isinstance(checkpoint, nn.Module) else checkpoint.model
    run = folders.check(output, "study", StudyError)
    task, anatomy = as_task(task), find_anatomy(model)
    find_parts(anatomy, level, options)  # an unknown level is refused before anything runs
    check_precision(model, anatomy)
    anatomy = layouts_by_density(model, anatomy, task, progress)
    base = options.uniform(anatomy, FLOAT32)
    variants = _variants(base, find_parts(anatomy, level, options), options)
    subject = Subject.of(checkpoint)
    with ExitStack() as open_:
        ledger = open_.enter_context(Ledger.open(run / folder.LEDGER, identity(subject, task, anatomy)))
        inputs = inputs_of(run, ledger, model, anatomy, task, options, progress)
        evaluator = open_.enter_context(Evaluator(model, anatomy, task, progress, inputs=inputs))
        stored = {"template": str(options.templates[0]), "vectors": str(options.vectors), "signs": options.signs}
        widths = [fmt.bits for fmt in options.formats]
        asked = {"level": level, "widths": widths, "quantizer": options.quantizers[0], **stored}
        question = Question(run, subject, asked, base, variants)
        return _Study(question, Measurements(ledger, evaluator), progress).conduct()


@dataclass(frozen=True, eq=False)
class Variant:
    """A part of the network at one width, and the allocation that this makes."""

    part: Part
    format: Format
    allocation: Allocation


def _variants(base: Allocation, parts: list[Part], options: Options) -> list[Variant]:
    return [Variant(part, fmt, base.replace(part.sites, fmt)) for part in parts for fmt in options.formats]


@dataclass(frozen=True, eq=False)
class Question:
    """What is studied, where it is kept, and the allocation that each variant changes one part of."""

    run: Path
    subject: Subject
    asked: dict[str, Any]
    base: Allocation
    variants: list[Variant]


class _Study:
    """One study of sensitivity as it goes."""

    def __init__(self, question: Question, measurements: Measurements, progress: Progress) -> None:
        self.run, self.variants = question.run, question.variants
        self.question, self.measurements, self.progress = question, measurements, progress
        self.evaluator = measurements.evaluator
        self.task: Task = self.evaluator.task
        self.floats = Allocation.float32(self.evaluator.anatomy)
        self.rates: dict[str, float] = {}  # of the float network's neurons
        self.drifts: dict[str, Drift] = {}  # by allocation key
        self.found: dict[str, Evaluation] = {}
        self.comparisons: dict[str, Comparison] = {}

    def conduct(self) -> Sensitivity:
        """The whole study."""
        self._recall()
        # Late blocks first: they share the most of the float network, which a cache of its blocks then still holds.
        wanted = {variant.allocation.key: variant for variant in reversed(self.variants)}
        baseline = self._known(self.floats)
        for key, variant in wanted.items():
            known = self._known(variant.allocation)
            if known is not None and key in self.drifts:
                self.found[key] = known
        todo = [variant for key, variant in wanted.items() if key not in self.found]
        if todo or baseline is None:
            baseline = self._measure(todo)
        self._record(baseline)
        return self._result(baseline)

    def _measure(self, todo: list[Variant]) -> Evaluation:
        """Measure the float network, then each variant; the float network's evaluation."""
        for check in check_ground(self.evaluator, bool(self.question.asked["signs"])):
            self.progress.message(f"{check.name}: {check.finding}")
        with Watch(self.evaluator.model) as watch:
            watch.remember()
            self._first_batch()
            again = self.evaluator.measure(self.floats, "search")
            baseline = self._kept(self.floats, BASELINE, FLOAT_NOTE, again)
            self.rates = watch.neurons
            self._tell(todo, again)
            for variant in self.progress.track(todo, len(todo), "sensitivity"):
                key, note = variant.allocation.key, f"{variant.part.name} alone at {variant.format}"
                watch.compare()
                evaluation = self.evaluator.measure(variant.allocation, "search")
                if not all(name.startswith(self._unchanged(variant)) for name in watch.unseen):
                    self._first_batch()
                self.drifts[key] = watch.result()
                self.found[key] = self._kept(variant.allocation, ALONE, note, evaluation)
                self._record(baseline)
        return baseline

    def _kept(self, allocation: Allocation, tier: str, note: str, measured: Evaluation) -> Evaluation:
        """What the ledger holds of an allocation; `measured` goes into it where there is nothing."""
        known = self._known(allocation)
        if known is None:
            self.measurements.ledger.put(allocation.key, "search", allocation.to_json(), tier, note, measured)
        return measured if known is None else known

    def _known(self, allocation: Allocation) -> Evaluation | None:
        """What the ledger holds of an allocation, where a search did not stop it early."""
        found = self.measurements.known(allocation, "search")
        return found if found is not None and found.complete else None

    def _first_batch(self) -> None:
        """The network, as it is rounded now, on the first batch alone."""
        model = self.evaluator.model
        reset_state(model)
        with torch.no_grad():
            self.task.losses(model, self.task.batches("search")[0])

    def _unchanged(self, variant: Variant) -> tuple[str, ...]:
        """How the names begin of what lies in blocks in front of the changed part: a prefix cache may leave it out.

        Its neurons do what those of the float network do, unless the base itself is rounded.
        """
        anatomy, base = variant.allocation.anatomy, self.question.base
        if any(fmt not in EXACT for fmt in base.formats):
            return ()
        changed = {anatomy[site].block for site in variant.part.sites}
        before = takewhile(lambda block: block not in changed, anatomy.blocks)
        return tuple(f"{path}." for block in before if (path := anatomy.path(block)) is not None)

    def _tell(self, todo: list[Variant], baseline: Evaluation) -> None:
        count, kept = len(todo), len({variant.allocation.key for variant in self.variants}) - len(todo)
        seconds = count * baseline.seconds
        self.progress.message(
            f"baseline: {self.task.metric} {baseline.value:.4f} ({baseline.low:.4f} to {baseline.high:.4f}) on "
            f"{len(baseline.losses.values):,} {self.task.unit}s of the search split\n"
            f"{count:,} evaluations of about {baseline.seconds:.1f} s, so {seconds / 60:.1f} minutes"
            + (f"; {kept:,} are known" if kept else "")
            + f"; stop at any time, the same command goes on from {self.run}"
        )

    def _recall(self) -> None:
        """What sensitivity.json holds of an earlier run; nothing where it is of another study or damaged."""
        path = self.run / FILE
        if not path.is_file():
            return
        try:
            content = folder.read_json(path)
            if content["version"] == VERSION and content["identity"] == self.measurements.ledger.identity:
                self.drifts = {str(key): drift_from_dict(found) for key, found in content["drifts"].items()}
                self.rates = {str(name): float(rate) for name, rate in content["baseline"]["rates"].items()}
        except (StudyError, KeyError, TypeError, ValueError, AttributeError):
            self.drifts, self.rates = {}, {}
            self.progress.message(f"{path} cannot be read: what it held is measured again.")

    def _record(self, baseline: Evaluation) -> None:
        """Write sensitivity.json: the lines so far, and every drift that was ever measured here."""
        drifts = {key: drift_to_dict(drift) for key, drift in self.drifts.items()}
        folder.write_json(self.run / FILE, {"version": VERSION, **self._result(baseline).to_dict(), "drifts": drifts})

    def _result(self, baseline: Evaluation) -> Sensitivity:
        task, losses = self.task, baseline.losses
        kind: Kind = "points" if task.higher_is_better and is_proportion(task, losses) else "absolute"
        about = {
            "checkpoint": self.question.subject.to_dict(),
            "task": {
                "name": task.name,
                "metric": task.metric,
                "higher_is_better": task.higher_is_better,
                "unit": task.unit,
                "units": len(losses.values),
                "tokens": baseline.tokens,
            },
            "options": self.question.asked,
            "kind": kind,
            "baseline": {
                "value": baseline.value,
                "low": baseline.low,
                "high": baseline.high,
                "bytes": self.question.base.footprint().file,
                "rates": self.rates,
            },
            "identity": self.measurements.ledger.identity,
        }
        done = [variant for variant in self.variants if variant.allocation.key in self.found]
        return Sensitivity(about, tuple(self._line(variant, baseline, kind) for variant in done), len(self.variants))

    def _line(self, variant: Variant, baseline: Evaluation, kind: Kind) -> Line:
        part, key = variant.part, variant.allocation.key
        evaluation, drift = self.found[key], self.drifts[key]
        if key not in self.comparisons:
            self.comparisons[key] = compare(self.task, evaluation.losses, baseline.losses, kind)
        comparison = self.comparisons[key]
        return Line(
            level=part.level,
            name=part.name,
            block=part.block,
            module=part.module,
            sites=part.sites,
            width=variant.format.bits,
            format=str(variant.format),
            key=key,
            bytes=evaluation.footprint_file,
            value=evaluation.value,
            loss=comparison.loss,
            low=comparison.low,
            high=comparison.high,
            divergence=drift.divergence,
            rows=drift.rows,
            rate_change=drift.rate_change,
            flipped=drift.flipped,
            drift=drift.drift,
            layers=drift.neurons,
        )
