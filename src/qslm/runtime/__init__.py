"""Running a model: by the native engine where it lies, or in PyTorch."""

from qslm.runtime.engine import Engine, EngineNetwork
from qslm.runtime.sampling import generate

__all__ = ["Engine", "EngineNetwork", "generate"]
