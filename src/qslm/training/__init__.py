"""Surrogate-gradient training of the networks in `models`."""

from qslm.training.classifier import ClassifierSettings, train_classifier
from qslm.training.language_model import LanguageModelSettings, train_lm

__all__ = ["ClassifierSettings", "LanguageModelSettings", "train_classifier", "train_lm"]
