"""Which matrices are stored column after column: those whose inputs are found to be mostly zero."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from qslm.anatomy import Anatomy
from qslm.calibration.calls import pieces
from qslm.calibration.layers import linear_layers
from qslm.evaluation.evaluator import evaluation_mode, reset_state
from qslm.progress import SILENT, Progress
from qslm.tasks.task import Task

TOKENS, STEP_TOKENS = 1024, 512
MOST_DENSITY = 0.2
"""Share of non-zero inputs up to which a product by columns is the faster one (`benchmarks/matvec.py`)."""


@dataclass
class Density:
    """How many of the inputs of a matrix, rounded to integers of 8 bits with one scale a token, are not zero."""

    inputs: int = 0
    firing: int = 0

    def add(self, x: Tensor) -> None:
        """Count inputs (..., in)."""
        size = x.abs()
        self.inputs += x.numel()
        self.firing += int((size > size.amax(-1, keepdim=True) / 254).sum())

    @property
    def share(self) -> float:
        """Of the inputs that are not zero; 1 where none was seen."""
        return self.firing / self.inputs if self.inputs else 1.0


def layouts_by_density(model: nn.Module, anatomy: Anatomy, task: Task, progress: Progress = SILENT) -> Anatomy:
    """The same anatomy, in which `sparse` are only those of its sparse sites of which it was measured.

    The network runs on about TOKENS tokens of the task's calibration split where it has such sites; a site stays
    `sparse` where MOST_DENSITY of its inputs at most are not zero.
    """
    layers = {layer: name for name, layer in linear_layers(model, anatomy) if anatomy[name].sparse}
    if not layers:
        return anatomy
    found = {name: Density() for name in layers.values()}
    with evaluation_mode(model), torch.no_grad(), _counting(layers, found):
        for call in pieces(model, task, TOKENS, STEP_TOKENS):
            reset_state(model)
            model(*call.arguments, **call.keywords)
    shares = sorted(density.share for density in found.values())
    kept = {name for name, density in found.items() if density.share <= MOST_DENSITY}
    progress.message(
        f"by columns: {len(kept)} of {len(found)} matrices, whose inputs are not zero in {shares[0]:.0%} to "
        f"{shares[-1]:.0%} of the cases ({MOST_DENSITY:.0%} at most)"
    )
    return Anatomy(tuple(replace(site, sparse=site.sparse and site.name in kept) for site in anatomy.sites))


@contextmanager
def _counting(layers: dict[nn.Linear, str], found: dict[str, Density]) -> Iterator[None]:
    def count(layer: nn.Module, given: tuple[Any, ...]) -> None:
        found[layers[layer]].add(given[0])  # type: ignore[index]

    handles = [layer.register_forward_pre_hook(count) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
