"""Which text is looked at: the calibration split of a task, in an order that is always the same."""

from typing import Any

import torch

from qslm.errors import QslmError
from qslm.tasks.task import Task

SEED = 0


def calibration_split(task: Task) -> str:
    """The split that costs are estimated on: "calibrate", or where the task has none "search"."""
    try:
        task.batches("calibrate")
    except (QslmError, KeyError):
        return "search"
    return "calibrate"


def shuffled_batches(task: Task) -> list[Any]:
    """The batches of the calibration split in random order, always the same."""
    batches = task.batches(calibration_split(task))
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(SEED)).tolist()
    return [batches[index] for index in order]
