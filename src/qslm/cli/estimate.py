"""How long a study will take, from a few timed batches of the baseline."""

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

TIMED_BATCHES = 4


def seconds_per_evaluation(model: "nn.Module", task: Any, split: str = "search") -> float:
    """Seconds that one evaluation of a split takes, extrapolated from evenly spaced batches after a warm-up."""
    import torch

    from qslm.evaluation import evaluation_mode, reset_state

    batches = task.batches(split)
    stride = max(1, len(batches) // TIMED_BATCHES)
    timed = batches[::stride]
    with evaluation_mode(model), torch.no_grad():
        reset_state(model)
        task.losses(model, batches[0])
        start = time.perf_counter()
        for batch in timed:
            reset_state(model)
            task.losses(model, batch)
    return (time.perf_counter() - start) / max(len(timed), 1) * len(batches)
