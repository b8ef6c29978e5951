"""A study: one search from checkpoint to selection, and the questions that its run folder answers afterwards."""

from qslm.study.demonstration import Demo, demo
from qslm.study.loop import search
from qslm.study.packing import pack
from qslm.study.reselect import select
from qslm.study.selection import Difference, Figures, Foretold, Selected, Selection
from qslm.study.sensitivity import Sensitivity, read_sensitivity, sensitivity
from qslm.study.status import Status, status

__all__ = [
    "Demo",
    "Difference",
    "Figures",
    "Foretold",
    "Selected",
    "Selection",
    "Sensitivity",
    "Status",
    "demo",
    "pack",
    "read_sensitivity",
    "search",
    "select",
    "sensitivity",
    "status",
]
