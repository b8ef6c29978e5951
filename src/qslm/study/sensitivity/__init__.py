"""The study of a network, one part at a time (QSLM Fig. 2 and 7): which block, module and site bears which width."""

from qslm.study.sensitivity.conduct import sensitivity
from qslm.study.sensitivity.lines import FILE, Line, Sensitivity, read_sensitivity
from qslm.study.sensitivity.parts import LEVELS, Level, Part, find_parts

__all__ = [
    "FILE",
    "LEVELS",
    "Level",
    "Line",
    "Part",
    "Sensitivity",
    "find_parts",
    "read_sensitivity",
    "sensitivity",
]
