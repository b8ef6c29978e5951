"""From a checkpoint to a packed spiking model: measure, convert, measure again, pack."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qslm import folders
from qslm.anatomy.find import find_anatomy
from qslm.conversion.cache import calibrate_cache
from qslm.conversion.convert import Conversion, Seen, convert
from qslm.conversion.leaving import COUNTS, shares
from qslm.conversion.packing import SPIKES, round_rest, unrounded
from qslm.conversion.rotate import rotate
from qslm.errors import ArtifactError, CheckpointError, FormatError, SpikeError
from qslm.evaluation import Evaluation, evaluate
from qslm.evaluation.density import layouts_by_density
from qslm.formats import Format
from qslm.loading.checkpoint import Checkpoint
from qslm.models.causal import CausalLogits
from qslm.models.padding import text_of
from qslm.progress import SILENT, Progress
from qslm.quantizers import QUANTIZERS, SCALING
from qslm.spiking import Encoding, calibrate, calibrate_ratio, threshold_for
from qslm.spiking.cache import NEXT_STEPS, STATIC, check_bits, hold
from qslm.spiking.layer import FloatActivations, Record, RoundedLayer, SpikeActivations
from qslm.tasks.statistics import Comparison, Kind, compare
from qslm.tasks.task import Task

ENCODING = Encoding(clip=0.9)
FLOAT = "float"
SPLIT = "search"


@dataclass(frozen=True)
class SpikeOptions:
    """How a network is converted.

    ratio: the share of salient values that the threshold of every input is calibrated to; None takes `threshold`, a
    modified z-score, for all. static: one center and one reach for all tokens of an input, from calibration. weights:
    bits, symmetric, one scale a row; group: inputs whose weights are shifted by a power of two together, None shifts
    none. float_weights: pack the weights as they were, for a study to choose their bits and those of the spike counts;
    measured are the rounded ones nevertheless. cache: bits of the KV cache of a Llama, None where it holds numbers;
    next_step: static or dynamic, of the values in it. All defaults are derived: 6.25 % is Atom's share of outliers.
    Raises FormatError or SpikeError where there is no such conversion.
    """

    encoding: Encoding = ENCODING
    ratio: float | None = 0.0625
    threshold: float = 3.5
    weights: int = 4
    group: int | None = None
    quantizer: str = "gptq"
    rotate: bool = False
    static: bool = False
    float_weights: bool = False
    cache: int | None = None
    next_step: str = STATIC

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0 < self.ratio < 0.5:
            raise SpikeError(
                f"A ratio of {self.ratio:g} of salient values is not between 0 and 0.5.", "Give a share such as 6.25%."
            )
        if not 0 < self.threshold < float("inf"):
            raise SpikeError(f"A threshold of {self.threshold} is no modified z-score.", "Give one such as 3.5.")
        if not 2 <= self.weights <= 8:
            raise FormatError(f"Weights of {self.weights} bits do not fit into int8.", "Give 2 to 8.")
        if self.quantizer not in QUANTIZERS or self.quantizer in SCALING:
            names = ", ".join(name for name in QUANTIZERS if name not in SCALING)
            raise FormatError(
                f"{self.quantizer[:64]!r} rounds no weights of spiking layers.", f"Choose one of: {names}."
            )
        self.format  # noqa: B018 raises FormatError where there is none
        if self.cache is not None:
            check_bits(self.cache)
            if self.float_weights:
                raise SpikeError(
                    "A KV cache of integers holds what spiking layers fire, and float weights make none.",
                    "Convert either with --kv-bits or with --float-weights.",
                )
        if self.next_step not in NEXT_STEPS:
            raise SpikeError(f"A next step is not {self.next_step[:64]!r}.", f"Choose {' or '.join(NEXT_STEPS)}.")
        if self.cache is None and self.next_step != STATIC:
            raise SpikeError("Without a KV cache of integers no next step is found.", "Give its bits: --kv-bits 4.")

    @property
    def format(self) -> Format:
        """Of the weights."""
        return Format.parse(f"int{self.weights}-sym-{'row' if self.group is None else f'g{self.group}-p2'}")

    def form(self, seen: Seen) -> SpikeActivations:
        """The spike counts of one input."""
        samples = [seen.samples]
        if self.static:
            found = calibrate(samples, self.threshold) if self.ratio is None else calibrate_ratio(samples, self.ratio)
            return SpikeActivations(self.encoding, self.threshold, found)
        threshold = self.threshold if self.ratio is None else threshold_for(samples, self.ratio)
        return SpikeActivations(self.encoding, threshold)


DEFAULTS = SpikeOptions()


@dataclass(frozen=True, eq=False)
class Spiked:
    """What a conversion gave, measured on the search split: the float network, rounded weights alone, and spikes.

    Embedding and head are rounded in both, as the packed file has them. weights: what the rounded weights cost beside
    the float network, loss: what all costs, and step: what the spikes cost beside the rounded weights, in the unit of
    `kind`, with paired 95 % intervals. layers: of every layer the values that reached it, the shares of salient
    ones and of zeros, and the bits of a stored one. outputs: what takes the outputs of the
    layers, by its share of them; those that left as spike counts first. cache: bits of the KV cache.
    """

    float32: Evaluation
    rounded: Evaluation
    spikes: Evaluation
    unit: str
    kind: Kind
    weights: Comparison
    loss: Comparison
    step: Comparison
    layers: Mapping[str, Mapping[str, float]]
    outputs: Mapping[str, float]
    cache: int | None
    rotation: str | None
    bytes: int
    sha256: str

    @property
    def salient_ratio(self) -> float:
        """Of all inputs, each layer weighing as its inputs have values."""
        return self._mean("salient_ratio")

    @property
    def activation_bits(self) -> float:
        """Of a stored value, lists, steps and exponents included."""
        return self._mean("activation_bits")

    @property
    def outputs_as_counts(self) -> float:
        """The share of outputs that leave a layer as spike counts, 0 to 1."""
        return self.outputs[COUNTS]

    def _mean(self, name: str) -> float:
        values = sum(one["values"] for one in self.layers.values())
        return sum(one[name] * one["values"] for one in self.layers.values()) / values

    def to_dict(self) -> dict[str, Any]:
        """For machines."""

        def ends(found: Comparison) -> dict[str, float]:
            return {"loss": found.loss, "low": found.low, "high": found.high}

        return {
            "split": SPLIT,
            "samples": len(self.spikes.losses.values),
            "unit": self.unit,
            "metric": self.spikes.metric,
            "kind": self.kind,
            "float32": self.float32.value,
            "rounded": self.rounded.value,
            "spikes": self.spikes.value,
            "weights": ends(self.weights),
            "loss": ends(self.loss),
            "step": ends(self.step),
            "salient_ratio": self.salient_ratio,
            "activation_bits": self.activation_bits,
            "outputs_as_counts": self.outputs_as_counts,
            "outputs": dict(self.outputs),
            "cache": self.cache,
            "layers": {path: dict(one) for path, one in self.layers.items()},
            "rotation": self.rotation,
            "bytes": self.bytes,
            "sha256": self.sha256,
        }


def spike(
    checkpoint: Checkpoint,
    task: Task,
    output: Path | str,
    options: SpikeOptions = DEFAULTS,
    progress: Progress = SILENT,
) -> Spiked:
    """Convert a checkpoint's network in place, and pack it into a folder that `load_checkpoint` opens.

    It is calibrated on the calibration split of the task and measured on its search split. Raises ArtifactError where
    the folder is not to be written, CheckpointError where the network is not to be rotated, or is spiking already, and
    what `convert` raises.
    """
    folder, model = folders.check(output, "packing", ArtifactError), checkpoint.model
    if any(isinstance(one, RoundedLayer) for one in model.modules()):
        raise CheckpointError(f"{checkpoint.name} is spiking already.", "Give the network that it was made of.")
    if options.cache is not None and not isinstance(model, CausalLogits):
        raise CheckpointError(
            f"A {type(model).__name__} has no KV cache: its state is of sums, not of keys and values.",
            "Convert it without --kv-bits.",
        )
    if options.rotate and not isinstance(model, CausalLogits):
        raise CheckpointError(
            f"No rotation folds into {type(model).__name__}, only into networks that are built as Llama is.",
            "Convert it without --rotate.",
        )
    float32 = evaluate(model, task, SPLIT, progress)
    rotation = None
    if options.rotate:
        assert isinstance(model, CausalLogits)
        rotated = rotate(model.network)
        rotation = (
            f"{rotated.stream}, heads {rotated.heads}; the untied head adds {rotated.untied_bytes:,} B in float32"
        )
    config, forms = checkpoint.config, {FLOAT: _float, SPIKES: options.form}
    anatomy = layouts_by_density(model, find_anatomy(model), task, progress)
    floats = (
        {name: one.detach().cpu().clone() for name, one in model.state_dict().items()} if options.float_weights else {}
    )
    found = convert(
        model,
        anatomy,
        task,
        forms,
        weights=options.format,
        quantizer=options.quantizer,
        tokens=sys.maxsize,  # all that the task has
        progress=progress,
    )
    packable = round_rest(found, anatomy, config)
    rounded = evaluate(model, task, SPLIT, progress)
    found.use(SPIKES)
    if options.cache is not None:
        form = calibrate_cache(model, task, options.cache, options.next_step)
        hold(model, form)
        packable = packable.with_cache(form)
    with text_of(model) as text:
        for layer in found.layers.values():
            layer.record = Record(text)
        spikes = evaluate(model, task, SPLIT, progress)
    words = None if checkpoint.tokenizer is None else checkpoint.tokenizer.to_str()
    if options.float_weights:
        packable = unrounded(floats, found, anatomy, config)
    packed = packable.write(folder, words)
    kind: Kind = "points" if task.higher_is_better else "relative"
    return Spiked(
        float32,
        rounded,
        spikes,
        task.unit,
        kind,
        compare(task, rounded.losses, float32.losses, kind),
        compare(task, spikes.losses, float32.losses, kind),
        compare(task, spikes.losses, rounded.losses, kind),
        _layers(found),
        _outputs(found),
        options.cache,
        rotation,
        packed.file_bytes,
        packed.sha256,
    )


def _float(seen: Seen) -> FloatActivations:
    return FloatActivations()


def _layers(found: Conversion) -> dict[str, dict[str, float]]:
    told = {}
    for path, layer in found.layers.items():
        assert layer.record is not None
        values = layer.record.tokens * layer.neurons.codes.shape[1]
        told[path] = {
            "values": values,
            "salient_ratio": layer.record.salient / values,
            "zero_ratio": layer.record.zeros / values,
            "activation_bits": 8 * layer.record.stored_bytes / values,
        }
    return told


def _outputs(found: Conversion) -> dict[str, float]:
    """What takes the outputs of the layers, by its share."""
    counted = {}
    for path, layer in found.layers.items():
        assert layer.record is not None
        counted[path] = layer.record.tokens * len(layer.neurons.codes), layer.record.fired
    return shares(counted)
