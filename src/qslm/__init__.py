"""Fit a spike-driven language model into a memory budget.

Every verb of the command line is a function here: `inspect`, `search`, `select`, `evaluate`, `verify`, `generate`,
`train_lm`, `train_classifier`, `demo`, `describe_data`; `artifact` reads packed models. The names below load on first
use, so that `qslm --help` does not wait for PyTorch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from qslm import artifact as artifact
    from qslm.allocation import Allocation as Allocation
    from qslm.anatomy.find import find_anatomy as find_anatomy
    from qslm.artifact import verify as verify
    from qslm.budget import Budget as Budget
    from qslm.data.overview import describe_data as describe_data
    from qslm.errors import QslmError as QslmError
    from qslm.evaluation import evaluate as evaluate
    from qslm.formats import Format as Format
    from qslm.inspection import inspect as inspect
    from qslm.loading.checkpoint import load_checkpoint as load_checkpoint
    from qslm.loading.checkpoint import load_model as load_model
    from qslm.report import write_report as write_report
    from qslm.runtime import generate as generate
    from qslm.search import Options as Options
    from qslm.study import demo as demo
    from qslm.study import search as search
    from qslm.study import select as select
    from qslm.tasks import Losses as Losses
    from qslm.tasks import Task as Task
    from qslm.tasks import make_task as make_task
    from qslm.training import ClassifierSettings as ClassifierSettings
    from qslm.training import LanguageModelSettings as LanguageModelSettings
    from qslm.training import train_classifier as train_classifier
    from qslm.training import train_lm as train_lm

HOMES = {
    "Allocation": "allocation",
    "Budget": "budget",
    "ClassifierSettings": "training",
    "Format": "formats",
    "LanguageModelSettings": "training",
    "Losses": "tasks",
    "Options": "search",
    "QslmError": "errors",
    "Task": "tasks",
    "demo": "study",
    "describe_data": "data.overview",
    "evaluate": "evaluation",
    "find_anatomy": "anatomy.find",
    "generate": "runtime",
    "inspect": "inspection",
    "load_checkpoint": "loading.checkpoint",
    "load_model": "loading.checkpoint",
    "make_task": "tasks",
    "search": "study",
    "select": "study",
    "train_classifier": "training",
    "train_lm": "training",
    "verify": "artifact",
    "write_report": "report",
}

__all__ = ["__version__", *HOMES]


def __getattr__(name: str) -> Any:
    if name == "artifact":
        return import_module("qslm.artifact")
    if name not in HOMES:
        raise AttributeError(f"module 'qslm' has no attribute {name!r}")
    value = getattr(import_module(f"qslm.{HOMES[name]}"), name)
    setattr(sys.modules[__name__], name, value)
    return value


class _Package(ModuleType):
    """The verb `search` and the folder `search/` share a name; as an attribute of the package it is the verb's."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
