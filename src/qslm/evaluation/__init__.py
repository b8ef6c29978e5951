"""Measuring allocations, and keeping what was measured."""

from qslm.evaluation.evaluation import Evaluation
from qslm.evaluation.evaluator import Evaluator, evaluate, evaluation_mode, reset_state
from qslm.evaluation.ledger import Ledger, Row
from qslm.evaluation.prefix import PREFIX_BYTES, PrefixCache

__all__ = [
    "PREFIX_BYTES",
    "Evaluation",
    "Evaluator",
    "Ledger",
    "PrefixCache",
    "Row",
    "evaluate",
    "evaluation_mode",
    "reset_state",
]
