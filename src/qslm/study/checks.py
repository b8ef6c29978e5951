"""What must hold before any search: a study whose ground is not firm stops here and says why."""

import hashlib
from dataclasses import dataclass
from itertools import combinations
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qslm.allocation import Allocation
from qslm.anatomy import Anatomy
from qslm.budget import Budget, spell_loss
from qslm.calibration.text import calibration_split
from qslm.data.overlap import SIZE, shared_ngrams
from qslm.digest import update_digest
from qslm.errors import BudgetError, StudyError
from qslm.evaluation import Evaluator
from qslm.evaluation.evaluator import measure_losses
from qslm.evaluation.prefix import tensors
from qslm.formats import FLOAT32
from qslm.models.parity import check_recurrent
from qslm.models.spikegpt import SpikeGPT
from qslm.search import Options
from qslm.study.judging import LEAST_UNITS
from qslm.tasks.statistics import compare, is_proportion
from qslm.tasks.task import Losses, Task

SPLITS = ("calibrate", "search", "report")
RECURRENT_SHAPE = (2, 64)  # sequences and tokens that the recurrent form is checked on


@dataclass(frozen=True)
class Check:
    """One thing that was checked, and what was found."""

    name: str
    finding: str


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a network answered to one batch: a digest of all outputs and losses, and the ids it was given."""

    digest: str
    ids: Tensor | None


def check_precision(model: nn.Module, anatomy: Anatomy) -> None:
    """Refuse weights that float32, which everything is rounded from, cannot hold. Raises StudyError."""
    state = model.state_dict()
    for site in anatomy.sites:
        weight = state[site.name]
        if weight.dtype == torch.float64 and not torch.equal(weight.float().double(), weight):
            raise StudyError(
                f"{site.name} is float64, with numbers that float32 cannot hold.",
                "Convert the network first: model.float().",
            )


def check_ground(evaluator: Evaluator, signs: bool) -> list[Check]:
    """Check on the first search batch that the network is deterministic, that an allocation which changes
    nothing changes no bit of its outputs, and that its recurrent form agrees with the parallel one.

    Leaves the float network in place. Raises StudyError, or CheckpointError from the recurrent form.
    """
    model, task, anatomy = evaluator.model, evaluator.task, evaluator.anatomy
    batch = _first_batch(task)
    original = _observe(model, task, batch)
    if _observe(model, task, batch).digest != original.digest:
        raise StudyError(
            "The network answers the same batch differently the second time.",
            "A module of it draws random numbers or keeps a state: give that module a reset() method.",
        )
    found = [Check("deterministic", "the same batch gives the same bits twice")]
    evaluator.apply(Allocation.float32(anatomy))
    _refuse_difference(original, _observe(model, task, batch), "An allocation that keeps every site in float32")
    found.append(Check("no-op", "float32 at every site reproduces the float logits bit for bit"))
    if signs and any(site.binarized for site in anatomy.sites):
        evaluator.apply(Allocation.uniform(anatomy, FLOAT32, signs=True))
        _refuse_difference(original, _observe(model, task, batch), "The binarized embedding stored as signs")
        found.append(Check("signs", "the embedding as signs reproduces the float logits bit for bit"))
    evaluator.restore()
    return [*found, _check_recurrent(model, original.ids)]


def check_kind(task: Task, budget: Budget, losses: Losses | None = None) -> None:
    """Refuse a limit in a unit that the metric has not: points are of a share, and a share has nothing else.

    Accuracy is known as a share by its name, another metric once it has `losses`. Raises BudgetError.
    """
    if budget.max_loss is None:
        return
    if budget.kind == "points":
        if not task.higher_is_better:
            remedy = "Limit its rise: --max-rise 1.0 or --max-rise 2%."
            raise BudgetError(f"The {task.metric} is no share: it has no points to drop.", remedy)
    elif task.higher_is_better and (task.metric == "accuracy" or (losses is not None and is_proportion(task, losses))):
        raise BudgetError(
            f"The {task.metric} does not rise as a model gets worse: it drops, by points.",
            "Limit its drop: --max-drop 2, which is 2 points of 100.",
        )


def check_spiking(anatomy: Anatomy, options: Options) -> None:
    """Refuse bits of spike counts where no layer can read any. Raises StudyError."""
    if options.activations and not any(site.spiking for site in anatomy.sites):
        raise StudyError(
            "Bits of spike counts are given, and no layer of the network reads any.",
            "Convert it first, by qslm spike CHECKPOINT --float-weights -o DIR, and search DIR; or leave them out.",
        )


def check_units(task: Task) -> None:
    """Refuse a split of fewer units than an interval needs, where the places of the batches tell their number.

    Raises StudyError.
    """
    for split in ("search", "report"):
        places = task.places(split)
        units = LEAST_UNITS if places is None else sum(map(len, places))
        if units < LEAST_UNITS:
            counted = f"{units} {task.unit}{'s' * (units != 1)}"
            raise StudyError(
                f"The {split} split of {task.name} has {counted}, and an interval needs {LEAST_UNITS} or more.",
                f"Give more data{', or a shorter --context' * (task.unit == 'window')}.",
            )


def check_sample(task: Task, budget: Budget, losses: Losses | None = None) -> None:
    """Refuse a limit that an allocation which changes no answer does not keep on a sample of this size.

    No sample shows a limit of 0: what keeps that is exact by its formats. Without `losses` (of the baseline) only
    accuracy is looked at, where the batches' places tell the number of units: then that number alone decides. Raises
    BudgetError.
    """
    losses = _right_everywhere(task) if losses is None else losses
    if not budget.max_loss or losses is None:
        return
    bound = compare(task, losses, losses, budget.kind).bound
    if not budget.verdict(0, 0.0, bound).quality_ok:
        least = spell_loss(budget.kind, ceil(100 * bound) / 100, signed=False)
        raise BudgetError(
            f"An allocation that changes no answer of {len(losses.values):,} {task.unit}s still has a bound of "
            f"{least}, more than the limit of {spell_loss(budget.kind, budget.max_loss, signed=False)}.",
            f"Give more {task.unit}s, allow {least}, or judge by the point alone: --decision point.",
        )


def check_calibration(task: Task) -> None:
    """Refuse to learn rounding on the split that judges it. Raises StudyError where the task has no other."""
    if calibration_split(task) == "search":
        raise StudyError(
            f"{task.name} has no calibration text, and rounding that is learned on the search split looks better there "
            "than it is.",
            "Search without reconstruction, or give a task with a split calibrate.",
        )


def _right_everywhere(task: Task) -> Losses | None:
    """The losses of a network that is right on every unit of the search split, where their number is known."""
    places = task.places("search") if task.metric == "accuracy" else None
    units = sum(map(len, places or []))
    return Losses(np.ones(units), np.ones(units), 0) if units > 1 else None


def check_overlap(task: Task) -> list[Check]:
    """Count the runs of 16 words that the splits share: what was seen in one says little new in another."""
    texts = {split: found for split in SPLITS if (found := task.texts(split)) is not None}
    pairs = [(one, other) for one, other in combinations(texts, 2)]
    checks: list[Check] = []
    for one, other in pairs:
        overlap = shared_ngrams(texts[one], texts[other])
        share = f"{overlap.shared:,} of {overlap.total:,} runs of {SIZE} words"
        checks.append(Check(f"overlap {one}/{other}", f"{share} in the {other} text stand in the {one} text too"))
    return checks


def _first_batch(task: Task) -> Any:
    batches = task.batches("search")
    if not len(batches):
        raise StudyError(f"The search split of {task.name} is empty.", "Give data to search on.")
    return batches[0]


def _refuse_difference(original: _Seen, seen: _Seen, what: str) -> None:
    if seen.digest != original.digest:
        raise StudyError(
            f"{what} changes the network's outputs.",
            "Look for a module that keeps a copy of its weights, computes in another type than they have, or is marked "
            "as binarized and reads more than signs.",
        )


def _check_recurrent(model: nn.Module, ids: Tensor | None) -> Check:
    """Compare the two forms of a network that has both. Derived: SpikeGPT alone says how its spikes compare."""
    if not isinstance(model, SpikeGPT) or ids is None:
        return Check("recurrent", "not checked: the network has no recurrent form that is known")
    sequences, tokens = RECURRENT_SHAPE
    parity = check_recurrent(model, ids[:sequences, :tokens])
    return Check(
        "recurrent",
        f"{parity.flipped} of {parity.spikes:,} spikes differ, logits by at most {parity.outputs:.1e}",
    )


def _observe(model: nn.Module, task: Task, batch: Any) -> _Seen:
    """Run the task on one batch and look at what goes into the network and what comes out."""
    digest = hashlib.sha256()
    given: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        given.extend(tensor for tensor in tensors(inputs) if tensor.dim() == 2 and not tensor.is_floating_point())
        update_digest(digest, tensors(outputs))

    handle = model.register_forward_hook(look)
    try:
        losses = measure_losses(model, task, batch)
    finally:
        handle.remove()
    digest.update(losses.values.tobytes())
    return _Seen(digest.hexdigest(), given[0] if given else None)
