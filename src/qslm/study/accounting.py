"""The energy account that a search leaves in its run folder, for the report: energy.json.

Operations are counted while the network with the selected allocation runs over calibration text, and priced by the
table that ships. What every other candidate would take is priced with the same activity (derived), as
`qslm energy --study` does it with that of the model it is given; but where its layers read other spike counts, the
network is metered with it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from qslm.allocation import Allocation
from qslm.calibration.text import calibration_split
from qslm.energy import Meter, Placement, Terms, load_table, meter_calls, per_token, statement, task_calls
from qslm.errors import EnergyError, QslmError, StudyError
from qslm.evaluation import Evaluator
from qslm.evaluation.evaluator import reset_state
from qslm.study import folder
from qslm.study.judging import Judged
from qslm.tasks.task import Task

VERSION = 1  # of energy.json
TOKENS = 1024  # that are metered, about
NAMED = 3  # modules in a sentence, at most


def account(evaluator: Evaluator, selected: Allocation, judged: Iterable[Judged]) -> dict[str, Any]:
    """What energy.json says of the selected allocation and of all candidates that were measured whole.

    The selected allocation stays applied. Where no account can be made, whatever the network or the task raises, it
    says why: `missing`, a sentence.
    """
    try:
        return _account(evaluator, selected, [one for one in judged if one.complete])
    except QslmError as error:
        return {"missing": error.problem}
    except Exception as error:  # of a network or a task that is not ours; the search has its answer all the same
        return {"missing": f"Metering the network raised {type(error).__name__}: {error!s:.200}."}


def _account(evaluator: Evaluator, selected: Allocation, judged: Iterable[Judged]) -> dict[str, Any]:
    meters: dict[tuple[int, ...], Meter] = {}
    table, placement = load_table(), Placement()

    def metered(allocation: Allocation) -> Meter:
        read = tuple(fmt.activations for _, fmt in allocation.items())
        if read not in meters:
            evaluator.apply(allocation)
            meters[read] = _metered(evaluator.model, evaluator.task)
        return meters[read]

    told = statement(metered(selected), evaluator.anatomy, table, Terms.of(selected), placement)
    candidates = {
        one.allocation.key: per_token(metered(one.allocation).layers, table, Terms.of(one.allocation), placement)
        for one in judged
    }
    evaluator.apply(selected)
    return {"split": calibration_split(evaluator.task), **told, "candidates": candidates}


def _metered(model: nn.Module, task: Task) -> Meter:
    """The meter of a network after about TOKENS tokens of the task, from the state of rest and back to it."""
    reset_state(model)
    try:
        meter = meter_calls(model, task_calls(model, task, TOKENS), TOKENS)
    finally:
        reset_state(model)
    _check_seen(meter)
    return meter


def _check_seen(meter: Meter) -> None:
    """Refuse an account that would leave matrices out. Raises EnergyError."""
    unseen = [path for path in meter.unseen if _has_matrix(meter.model.get_submodule(path))]
    if unseen:
        named = ", ".join(path or "the network itself" for path in unseen[:NAMED])
        raise EnergyError(
            f"Of {named}{' and more' * (len(unseen) > NAMED)}, which have matrices, the operations are not known, or"
            " they did not run.",
            "Build the network of modules that qslm.energy.metering knows.",
        )


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))


def write_account(run: Path, key: str, digest: str, found: Mapping[str, Any]) -> None:
    """Write energy.json of the selected allocation `key` and of the checkpoint with this digest. Raises StudyError."""
    folder.write_json(run / folder.ENERGY, {"version": VERSION, "checkpoint": digest, "selected": key, **found})


def read_account(run: Path, key: str, digest: str) -> dict[str, Any] | None:
    """The content of energy.json; None where there is none, as an older study has left none.

    Raises StudyError where it is damaged, of another version, or of another selection or checkpoint than these.
    """
    path = run / folder.ENERGY
    if not path.is_file():
        return None
    content = folder.read_json(path)
    for name, wanted in (("version", VERSION), ("checkpoint", digest), ("selected", key)):
        if (found := content.get(name)) != wanted:
            raise StudyError(f"{path} has the {name} {found!r:.80}, the study {wanted!r}.", folder.AGAIN)
    return content
