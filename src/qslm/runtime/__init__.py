"""Running a model: today in PyTorch, token by token."""

from qslm.runtime.sampling import generate

__all__ = ["generate"]
