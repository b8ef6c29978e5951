"""Surrogate-gradient training of the networks in `models`; the names load on first use, settings without PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qslm.training.settings import ClassifierSettings, LanguageModelSettings

if TYPE_CHECKING:
    from qslm.training.classifier import train_classifier
    from qslm.training.language_model import train_lm

_HOMES = {"train_classifier": "classifier", "train_lm": "language_model"}

__all__ = ["ClassifierSettings", "LanguageModelSettings", "train_classifier", "train_lm"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qslm.training' has no attribute {name!r}")
    return getattr(import_module(f"qslm.training.{_HOMES[name]}"), name)
