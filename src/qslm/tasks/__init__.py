"""Tasks: data with a metric, and the statistics of their losses."""

from qslm.tasks.classification import Classification
from qslm.tasks.language_modelling import LanguageModelling
from qslm.tasks.named import FILE_TASKS, NAMES, make_task
from qslm.tasks.statistics import Comparison, Interval, compare, interval
from qslm.tasks.task import Losses, Task, as_task

__all__ = [
    "FILE_TASKS",
    "NAMES",
    "Classification",
    "Comparison",
    "Interval",
    "LanguageModelling",
    "Losses",
    "Task",
    "as_task",
    "compare",
    "interval",
    "make_task",
]
