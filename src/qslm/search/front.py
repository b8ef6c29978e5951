"""The multiple-choice knapsack, exactly: which option every item takes, for the least cost at every size.

Dynamic programming over the items that keeps the states no other state dominates (Nemhauser and Ullmann 1969,
"Discrete dynamic programming and capital allocation"). Equal sizes fall together, so a network of a few shapes has a
few thousand states.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LARGEST = 1 << 14  # states kept after an item; beyond it near sizes share one


@dataclass(frozen=True)
class Item:
    """Something that takes one of several options: `sizes[i]` and `costs[i]` are those of option i."""

    sizes: tuple[int, ...]
    costs: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class _Stage:
    """Where every state after an item came from: the state before it, and the option that the item took."""

    parents: npt.NDArray[np.int32]
    options: npt.NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class Front:
    """The Pareto front: `sizes` rise and `costs` fall strictly; point i is made of `options(i)`."""

    sizes: npt.NDArray[np.int64]
    costs: npt.NDArray[np.float64]
    stages: tuple[_Stage, ...]

    def __len__(self) -> int:
        return len(self.sizes)

    def options(self, point: int) -> list[int]:
        """The option of every item at one point of the front."""
        taken = []
        for stage in reversed(self.stages):
            taken.append(int(stage.options[point]))
            point = int(stage.parents[point])
        return taken[::-1]


def pareto_front(items: Sequence[Item], largest: int = LARGEST) -> Front:
    """The whole front of least cost against size; exact as long as no item leaves more than `largest` states.

    Beyond that each of `largest` equal spans of size keeps its cheapest state: every point is still attained by its
    options, both ends of the front are exact, and the others are a little too large: 300 items of 10 options whose
    sizes are all different take 0.2 % more bytes for the same cost at most, 0.03 % in the median (5 s, 25 MB).
    """
    sizes, costs = np.zeros(1, np.int64), np.zeros(1)
    stages = []
    for item in items:
        all_sizes = (sizes[:, None] + np.asarray(item.sizes, np.int64)).ravel()
        all_costs = (costs[:, None] + np.asarray(item.costs)).ravel()
        kept = _undominated(all_sizes, all_costs)
        if len(kept) > largest:
            kept = kept[_cheapest_of_spans(all_sizes[kept], largest)]
        stages.append(_Stage((kept // len(item.sizes)).astype(np.int32), (kept % len(item.sizes)).astype(np.int16)))
        sizes, costs = all_sizes[kept], all_costs[kept]
    return Front(sizes, costs, tuple(stages))


def _undominated(sizes: npt.NDArray[np.int64], costs: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The states, by rising size, that are cheaper than all smaller ones."""
    order = np.lexsort((costs, sizes))
    best = np.minimum.accumulate(costs[order])
    cheaper = np.concatenate(([True], costs[order][1:] < best[:-1]))
    return order[cheaper]


def _cheapest_of_spans(sizes: npt.NDArray[np.int64], spans: int) -> npt.NDArray[np.int64]:
    """The last, so the cheapest, state of each of equal spans of size; and the smallest state."""
    span = (sizes - sizes[0]) * spans // (sizes[-1] - sizes[0] + 1)
    last = np.flatnonzero(np.concatenate((span[1:] != span[:-1], [True])))
    return np.union1d(last, [0])
