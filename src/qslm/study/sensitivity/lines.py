"""What a study of sensitivity found: a line for every part at every width."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qslm.errors import StudyError
from qslm.evaluation.drift import Drift, NeuronDrift
from qslm.study import folder

FILE = "sensitivity.json"
VERSION = 1


@dataclass(frozen=True)
class Line:
    """One part of the network alone at one width, all else in float32.

    value: the metric on the search split. loss: how much worse it is than the float network's (positive is worse), in
    the study's kind, with its two-sided paired 95 % interval low to high. divergence: KL of the logits to the float
    ones, nats a row (token or sentence). rate_change, flipped, drift: means over the neuron layers on the first
    batch, None in a network without neurons; `layers` has each. bytes: of the model file. key: of the allocation.
    """

    level: str
    name: str
    block: str
    module: str
    sites: tuple[str, ...]
    width: int
    format: str
    key: str
    bytes: int
    value: float
    loss: float
    low: float
    high: float
    divergence: float
    rows: int
    rate_change: float | None
    flipped: float | None
    drift: float | None
    layers: tuple[NeuronDrift, ...]

    def to_dict(self) -> dict[str, Any]:
        """The line as JSON values."""
        return {**vars(self), "sites": list(self.sites), "layers": [vars(layer) for layer in self.layers]}


@dataclass(frozen=True)
class Sensitivity:
    """A study of sensitivity, whole or as far as it went.

    about: checkpoint, task (with how many units and tokens were measured), options, the float network's figures
    (`baseline`; its bytes are with signs where lines have them), the kind of the losses, the ledger's identity.
    lines: in the order of the network, widest first. planned: how many lines there are to be.
    """

    about: Mapping[str, Any]
    lines: tuple[Line, ...]
    planned: int

    def ranked(self) -> list[Line]:
        """The lines by falling loss, where that is equal by falling divergence; parts with the same sites once."""
        first: dict[str, Line] = {}
        for line in self.lines:
            first.setdefault(line.key, line)
        return sorted(first.values(), key=lambda line: (-line.loss, -line.divergence))

    def to_dict(self) -> dict[str, Any]:
        """The study as JSON values."""
        return {**self.about, "planned": self.planned, "lines": [line.to_dict() for line in self.lines]}


def read_sensitivity(run: Path | str) -> Sensitivity:
    """What `sensitivity` left in a run folder. Raises StudyError when there is nothing, or it is damaged."""
    path = Path(run) / FILE
    content = folder.read_json(path)
    try:
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']}")
        about = {name: content[name] for name in ("checkpoint", "task", "options", "kind", "baseline", "identity")}
        return Sensitivity(about, tuple(map(_line, content["lines"])), int(content["planned"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StudyError(f"{path} holds no study of sensitivity: {type(error).__name__}: {error}.", AGAIN) from error


AGAIN = "Run qslm sensitivity again in this folder."


def drift_to_dict(drift: Drift) -> dict[str, Any]:
    """A Drift as JSON values."""
    neurons = [vars(neuron) for neuron in drift.neurons]
    return {"divergence": drift.divergence, "rows": drift.rows, "neurons": neurons}


def drift_from_dict(content: Mapping[str, Any]) -> Drift:
    """The inverse of `drift_to_dict`; null stands for infinity. Raises KeyError, TypeError or ValueError."""
    neurons = tuple(map(_neuron, content["neurons"]))
    return Drift(_number(content["divergence"]), int(content["rows"]), neurons)


def _line(content: Mapping[str, Any]) -> Line:
    texts = {name: str(content[name]) for name in ("level", "name", "block", "module", "format", "key")}
    numbers = {name: _number(content[name]) for name in ("value", "loss", "low", "high", "divergence")}
    counts = {name: int(content[name]) for name in ("width", "bytes", "rows")}
    layers = tuple(map(_neuron, content["layers"]))
    means = {name: _number(content[name]) if layers else None for name in ("rate_change", "flipped", "drift")}
    sites = tuple(map(str, content["sites"]))
    return Line(**texts, **numbers, **counts, **means, sites=sites, layers=layers)  # type: ignore[arg-type]


def _neuron(content: Mapping[str, Any]) -> NeuronDrift:
    figures = {name: _number(content[name]) for name in ("rate", "rate_change", "flipped", "drift")}
    return NeuronDrift(str(content["name"]), **figures)


def _number(value: Any) -> float:
    return float("inf") if value is None else float(value)
