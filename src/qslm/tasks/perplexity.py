"""The metric of language models."""

import numpy as np

from qslm.tasks.task import Floats, Losses, Task


class Perplexity(Task):
    """A task whose metric is exp((1/N) sum_i nats_i) over the N tokens that a split predicts."""

    metric = "perplexity"
    higher_is_better = False
    log_scale = True
    unit = "window"

    def reduce(self, losses: Losses) -> float:
        """Perplexity: exp of the mean nats per token (infinite where it outgrows a float)."""
        return float(exp(np.array(super().reduce(losses))))

    def reduce_without_each(self, losses: Losses) -> Floats:
        """Perplexity `(units,)` with one unit left out."""
        return exp(losses.without_each())


def exp(values: Floats) -> Floats:
    """The exponential; infinite, without a warning, where it outgrows a float."""
    with np.errstate(over="ignore"):
        result: Floats = np.exp(values)
    return result
