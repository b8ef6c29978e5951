"""Measuring allocations, and keeping what was measured."""

from qslm.evaluation.evaluation import Evaluation
from qslm.evaluation.evaluator import Evaluator, evaluate, evaluation_mode, reset_state
from qslm.evaluation.ledger import Ledger, Row

__all__ = ["Evaluation", "Evaluator", "Ledger", "Row", "evaluate", "evaluation_mode", "reset_state"]
