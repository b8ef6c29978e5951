"""What the trainings can be told; loads without PyTorch, so that the command line shows these defaults at once."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

from qslm.errors import TrainingError
from qslm.folders import named

LARGEST_DROPOUT = 0.99
_LEAST = {
    "width": 1, "layers": 1, "context": 1, "batch": 1, "tokens": 1, "epochs": 1,
    "peak_rate": 0, "warmup_steps": 0, "weight_decay": 0, "dropout": 0,
}  # fmt: skip
_PLACES = ("output", "data")  # where files lie on one machine; not what is trained
_OPTIONS = {"peak_rate": "--rate"}  # all others are named as their fields


@dataclass(frozen=True)
class LanguageModelSettings:
    """What `qslm train lm` can be told; the defaults made `spikegpt-mini`. Raises TrainingError."""

    output: Path
    data: Path | str | None = None
    width: int = 256
    layers: int = 6
    vocabulary: int = 4096
    context: int = 256
    batch: int = 16
    tokens: int = 24_000_000
    peak_rate: float = 2e-3
    warmup_steps: int = 200
    weight_decay: float = 0.1
    dropout: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self)

    @property
    def steps(self) -> int:
        """The optimizer steps that see `tokens` tokens, at least 1."""
        return max(1, self.tokens // (self.batch * self.context))


@dataclass(frozen=True)
class ClassifierSettings:
    """What `qslm train classifier` can be told; the defaults made `spikegpt-mini-sst2`. Raises TrainingError."""

    output: Path
    data: Path | str | None = None
    epochs: int = 4
    batch: int = 64
    peak_rate: float = 5e-4
    warmup_steps: int = 200
    weight_decay: float = 0.1
    dropout: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self)


Settings: TypeAlias = LanguageModelSettings | ClassifierSettings


def chosen(settings: Settings) -> dict[str, Any]:
    """The settings that decide what is trained: all but the folders."""
    return {name: value for name, value in asdict(settings).items() if name not in _PLACES}


def command(verb: str, settings: Settings, given: Sequence[str] = ()) -> str:
    """The command that trains with `settings`: `verb`, the words `given`, and what differs from the defaults.

    The output folder goes by its last name, and `--data` is left out: both belong to one machine.
    """
    words = [*verb.split(), *given, "-o", settings.output.resolve().name]
    defaults = {field.name: field.default for field in fields(settings)}
    for name, value in chosen(settings).items():
        if value != defaults[name]:
            words += [_OPTIONS.get(name, "--" + name.replace("_", "-")), str(value)]
    return shlex.join(words)


def _check(settings: Settings) -> None:
    object.__setattr__(settings, "output", named(settings.output))  # which may be given as a text
    for name, value in chosen(settings).items():
        if name in _LEAST and not value >= _LEAST[name]:  # "not" finds NaN as well
            raise TrainingError(f"The setting {name} is {value}.", f"Give {_LEAST[name]} or more.")
    if settings.dropout > LARGEST_DROPOUT:
        raise TrainingError(f"The setting dropout is {settings.dropout}.", f"Give {LARGEST_DROPOUT} or less.")
