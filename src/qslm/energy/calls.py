"""Calls of a network on the calibration text of a task: metered, or measured where the machine has a counter."""

from collections.abc import Sequence

import torch
from torch import nn

from qslm.calibration.calls import Call, pieces
from qslm.energy.metering import Meter, metered
from qslm.energy.power import Counters, Power, measure
from qslm.errors import TaskError
from qslm.tasks.task import Task


def task_calls(model: nn.Module, task: Task, tokens: int) -> Sequence[Call]:
    """Calls on so many tokens of calibration text or more, padding included. Raises TaskError when there is none."""
    calls = pieces(model, task, tokens, tokens)
    if not calls:
        raise TaskError(f"The calibration text of {task.name} is empty.", "Give more text.")
    return calls


def meter_calls(model: nn.Module, calls: Sequence[Call], tokens: int) -> Meter:
    """The meter of a network after about so many tokens of these calls: what is beyond them is cut off.

    The network runs in the mode in which it is.
    """
    left = tokens
    with torch.inference_mode(), metered(model) as meter:
        for call in calls:
            if left <= 0:
                break
            part = call.cut(slice(0, max(1, left // (call.shape or (1, 1))[1])), left)
            model(*part.arguments, **part.keywords)
            left -= part.tokens
    return meter


def measure_call(model: nn.Module, call: Call, counters: Counters) -> Power | None:
    """The real energy of a call, again and again; None where there is no counter (`counters.missing` says why)."""
    if not counters.found:
        return None

    def work() -> int:
        with torch.inference_mode():
            model(*call.arguments, **call.keywords)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return call.tokens

    work()  # the first run warms up
    return measure(work, counters)
