"""Measuring allocations, and keeping what was measured."""

from qslm.evaluation.evaluation import Evaluation
from qslm.evaluation.evaluator import Evaluator, evaluate, evaluation_mode, reset_state
from qslm.evaluation.ledger import Ledger, Row
from qslm.evaluation.pool import Pool, make_pool
from qslm.evaluation.prefix import PREFIX_BYTES, PrefixCache

__all__ = [
    "PREFIX_BYTES",
    "Evaluation",
    "Evaluator",
    "Ledger",
    "Pool",
    "PrefixCache",
    "Row",
    "evaluate",
    "evaluation_mode",
    "make_pool",
    "reset_state",
]
