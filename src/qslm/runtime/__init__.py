"""Running a model: today in PyTorch, token by token."""

from qslm.runtime.generate import generate

__all__ = ["generate"]
