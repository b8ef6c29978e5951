"""Count what goes through a running network, layer by layer, by hooks on its modules.

Nothing is assumed: zeros, spikes and spike trains are those of the values that came. What happens between modules
without being one (residual additions of other networks than SpikeGPT) is not seen; modules that own parameters and
are of no kind that is known here are named in `Meter.unseen`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qslm.energy.attention import Attention
from qslm.energy.layers import ChannelMixing, Elementwise, Embedding, Neurons, Norm, TimeMixing, Turning
from qslm.energy.matrix import Matrix
from qslm.energy.rounded import SELECTION, Rounded
from qslm.energy.terms import Layer
from qslm.models import spikegpt
from qslm.models.causal import is_attention
from qslm.models.hadamard import Turn
from qslm.models.neurons import LIF, Neuron
from qslm.spiking.encoding import SpikeCounts, index_bytes
from qslm.spiking.layer import Activations, Record, RoundedLayer, SpikeActivations
from qslm.spiking.rivals import OUTLIER_BITS, AtomLike, RoundToNearest, SpikeLlmLike
from qslm.spiking.slot import computing
from qslm.spiking.trains import BitPlanes, FirstSpike, Windows

SMOOTH = ("SiLU", "SiLUActivation", "GELU", "GELUActivation", "Sigmoid", "Tanh")


class Meter:
    """What went through the layers of a network so far, by their paths in the order in which they first ran."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.found: dict[str, Layer] = {}
        self.nonzeros: dict[str, int] = {}  # among the inputs of each matrix in its last call
        self._names = {computing(module): path for path, module in model.named_modules()}
        self._read: dict[Activations, Tensor] = {}  # the input that a form was last given, which siblings share

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers that ran."""
        return tuple(self.found.values())

    @property
    def tokens(self) -> int:
        """The tokens that went through the network: those of the layer that saw the most."""
        return max((layer.tokens for layer in self.layers), default=0)

    @property
    def unseen(self) -> tuple[str, ...]:
        """Modules that own parameters and were not counted, by path: of a kind that is not known, or never called."""
        owning = (path for module, path in self._names.items() if next(module.parameters(False), None) is not None)
        return tuple(path for path in owning if path not in self.found)

    def add(self, layer: Layer) -> None:
        """Add what went through a layer in one call."""
        before = self.found.get(layer.path)
        self.found[layer.path] = layer if before is None else before + layer

    def path(self, module: nn.Module) -> str:
        """Where a module is in the network."""
        return self._names[computing(module)]

    def sites(self, module: nn.Module) -> dict[str, tuple[int, ...]]:
        """The shapes of the parameters that a module owns itself, by their state-dict keys."""
        path = self.path(module)
        prefix = f"{path}." if path else ""
        return {prefix + name: tuple(one.shape) for name, one in module.named_parameters(recurse=False)}

    def common(self, module: nn.Module) -> dict[str, Any]:
        """Path and sites of a module, as the fields of a layer."""
        return {"path": self.path(module), "sites": self.sites(module)}

    def first_read(self, form: Activations, x: Tensor) -> bool:
        """Whether a form is given another tensor than in the call before: so it is encoded now."""
        fresh = self._read.get(form) is not x
        self._read[form] = x
        return fresh


@contextmanager
def metered(model: nn.Module) -> Iterator[Meter]:
    """Count everything that goes through a network in the meantime.

    Records of its rounded layers rest meanwhile, and are put back. The network computes the same bits as without.
    """
    meter = Meter(model)
    modules = list(map(computing, model.modules()))
    kept = {one: one.record for one in modules if isinstance(one, RoundedLayer)}
    handles = []
    for module in modules:
        if isinstance(module, RoundedLayer):
            module.record = None
            handles.append(module.register_forward_pre_hook(_fresh_record))
        if (count := _counter(module)) is not None:
            hook = _hook(meter, count)
            handles.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        yield meter
    finally:
        for handle in handles:
            handle.remove()
        for layer, record in kept.items():
            layer.record = record
        meter._read.clear()


Count = Callable[[Meter, Any, dict[Any, Any], Any], Layer]  # of meter, module, what it was given and what it gave


def _hook(meter: Meter, count: Count) -> Callable[..., None]:
    def hook(module: nn.Module, given: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        values = dict(enumerate(given)) | keywords
        with torch.no_grad():
            meter.add(count(meter, module, values, output))

    return hook


def _fresh_record(layer: RoundedLayer, _: Any) -> None:
    layer.record = Record()


def _counter(module: nn.Module) -> Count | None:
    for kind, count in _COUNTERS:
        if isinstance(module, kind):
            return count
    name = type(module).__name__
    if name.endswith("RMSNorm"):
        return _rms_norm
    if name in SMOOTH or isinstance(module, nn.ReLU):
        return _elementwise
    if is_attention(module):
        return _attention
    if hasattr(module, "attention_head_size"):
        return _encoder_attention
    return None


def _tokens(x: Tensor) -> int:
    return x.shape[:-1].numel()


# ---- one counter a kind of module ------------------------------------------------------------------------------


def _matrix(meter: Meter, module: nn.Linear, given: dict[Any, Any], _: Tensor) -> Layer:
    x = next(iter(given.values()))
    live = x != 0
    is_spikes = bool((x[live].abs() == 1).all())
    nonzeros = meter.nonzeros[meter.path(module)] = int(live.sum())
    return Matrix(
        **meter.common(module),
        tokens=_tokens(x),
        out=module.out_features,
        width=module.in_features,
        bias=module.bias is not None,
        zeros=x.numel() - nonzeros,
        spikes=nonzeros if is_spikes else 0,
    )


def _rounded(meter: Meter, module: RoundedLayer, given: dict[Any, Any], _: Tensor) -> Layer:
    x, record, form = next(iter(given.values())), module.record, module.activations
    assert record is not None
    out, width = module.neurons.codes.shape
    fresh = meter.first_read(form, x)
    meter.nonzeros[meter.path(module)] = int((x != 0).sum())
    found: dict[str, Any] = {"kind": "float", "bits": 16, "wide_bits": 16}
    encodes = True
    if isinstance(form, SpikeActivations):
        counts = form.counts(x)  # those of the call: the form keeps them for the tensor
        found = _of_spikes(form, counts)
    elif isinstance(form, RoundToNearest):
        found = {"kind": "integers", "bits": form.encoding.bits, "wide_bits": form.encoding.bits}
    elif isinstance(form, AtomLike):
        groups = -(-(width - record.salient // max(record.tokens, 1)) // form.group) + 1
        found = {"kind": "integers", "bits": form.bits, "wide_bits": OUTLIER_BITS, "groups": groups}
    elif isinstance(form, SpikeLlmLike):
        found = {"kind": "integers", "bits": form.bits, "wide_bits": form.bits + form.more, "groups": 2}
        found["asymmetric"] = True
    else:
        encodes = False
    firing = module.firing if record.fired else None
    if firing is not None:
        found |= {"fired_bits": firing.bits, "fired_heads": firing.heads * (firing.steps is None)}
    encoded = record.tokens if fresh and encodes else 0
    return Rounded(
        path=meter.path(module),
        tokens=record.tokens,
        out=out,
        width=width,
        format=module.rounded.format,
        bias=module.bias is not None,
        shifted=0 if module.neurons.shifts is None else module.neurons.shifts.shape[1],
        zeros=record.zeros,
        salient=record.salient,
        massive=record.massive,
        encoded=encoded * width,
        encoded_tokens=encoded,
        cost=record.cost,
        fired_spikes=record.fired_spikes,
        input_bytes=record.stored_bytes,
        **found,
    )


def _of_spikes(form: SpikeActivations, counts: SpikeCounts) -> dict[str, Any]:
    """The fields of spikes: indices are where the lists of a token begin."""
    dynamic = form.saliency is None
    shifts, updates = _steps(form.windows, counts)
    return {
        "kind": "spikes",
        "bits": form.encoding.bits,
        "wide_bits": form.encoding.salient_bits,
        "detects": (2 * SELECTION + 1, 1) if dynamic else (1, 1),
        "shifts": shifts,
        "updates": updates,
        "index_bytes": index_bytes(len(counts.counts)),
    }


def _steps(windows: Windows, counts: SpikeCounts) -> tuple[int, int]:
    """Shifts of one output, and updates of its sums.

    A time step of bit planes takes a shift, and so does a spike of the massive values, whose weights are shifted by e.
    A time step updates the membrane potential; where the spikes are first ones, their running sum too.
    """
    encoding = counts.encoding
    plain = counts.salient & ~counts.massive
    shifts = updates = 0
    for code, most, tokens in (
        (windows.normal, encoding.most, len(counts.counts)),
        (windows.salient, encoding.most_salient, int(plain.any(1).sum())),
        (windows.massive, encoding.most_salient, int(counts.massive.any(1).sum())),
    ):
        steps = code.steps(most) * tokens
        shifts += steps * isinstance(code, BitPlanes)
        updates += steps * (2 if isinstance(code, FirstSpike) else 1)
    if counts.has_massive:
        magnitudes = counts.counts.int().masked_fill(~counts.massive, 0)
        shifts += windows.massive.cost(magnitudes, windows.massive.steps(encoding.most_salient)).accumulates
    return shifts, updates


def _neurons(meter: Meter, module: Neuron, given: dict[Any, Any], output: tuple[Tensor, Tensor]) -> Layer:
    spikes = output[0]
    return Neurons(
        **meter.common(module),
        tokens=_tokens(spikes),
        channels=spikes.shape[-1],
        leaky=isinstance(module, LIF),
        spikes=int((spikes != 0).sum()),
    )


def _embedding(meter: Meter, module: nn.Embedding, given: dict[Any, Any], output: Tensor) -> Layer:
    binarized = bool(getattr(module, "binarized", False))
    return Embedding(
        **meter.common(module),
        tokens=_tokens(output),
        width=output.shape[-1],
        binarized=binarized,
        ones=int((output != 0).sum()) if binarized else 0,
    )


def _norm(meter: Meter, module: nn.Module, given: dict[Any, Any], output: Tensor) -> Layer:
    return Norm(**meter.common(module), tokens=_tokens(output), width=output.shape[-1])


def _rms_norm(meter: Meter, module: nn.Module, given: dict[Any, Any], output: Tensor) -> Layer:
    return Norm(**meter.common(module), tokens=_tokens(output), width=output.shape[-1], centered=False)


def _time_mixing(meter: Meter, module: nn.Module, given: dict[Any, Any], output: tuple[Tensor, Tensor]) -> Layer:
    return TimeMixing(**meter.common(module), tokens=_tokens(output[0]), width=output[0].shape[-1])


def _channel_mixing(meter: Meter, module: spikegpt.ChannelMixing, given: dict[Any, Any], output: Tensor) -> Layer:
    return ChannelMixing(
        **meter.common(module),
        tokens=_tokens(output),
        width=output.shape[-1],
        ffn_width=_inputs(module.value),
        positive=meter.nonzeros[meter.path(module.value)],
    )


def _attention(meter: Meter, module: Any, given: dict[Any, Any], output: Any) -> Layer:
    x = given.get("hidden_states", given.get(0))
    assert isinstance(x, Tensor)
    rows, length, _ = x.shape
    head, key, query = int(module.head_dim), _outputs(module.k_proj), _outputs(module.q_proj)
    firing = getattr(module.v_proj, "firing", None)  # keys are rounded where values fire (`spiking.cache.hold`)
    return Attention(
        **meter.common(module),
        tokens=rows * length,
        heads=query // head,
        kv_heads=key // head,
        head_dim=head,
        cache_bits=None if firing is None else firing.bits,
        dynamic_values=firing is not None and firing.steps is None,
        pairs=rows * length * (length + 1) // 2,
    )


def _encoder_attention(meter: Meter, module: Any, given: dict[Any, Any], output: Any) -> Layer:
    """That of BERT and DistilBERT: every position sees all of its row, and what padding gives is computed too."""
    x = given.get("hidden_states", given.get(0))
    assert isinstance(x, Tensor)
    rows, length, width = x.shape
    head = int(module.attention_head_size)
    return Attention(
        **meter.common(module),
        tokens=rows * length,
        heads=width // head,
        kv_heads=width // head,
        head_dim=head,
        causal=False,
        rotary=False,
        pairs=rows * length * length,
    )


def _outputs(layer: Any) -> int:
    return len(layer.neurons.codes) if isinstance(layer, RoundedLayer) else int(layer.out_features)


def _inputs(layer: Any) -> int:
    return layer.neurons.codes.shape[1] if isinstance(layer, RoundedLayer) else int(layer.in_features)


def _elementwise(meter: Meter, module: nn.Module, given: dict[Any, Any], output: Tensor) -> Layer:
    return Elementwise(
        path=meter.path(module),
        tokens=_tokens(output),
        values=output.numel(),
        smooth=not isinstance(module, nn.ReLU),
    )


def _turning(meter: Meter, module: Turn, given: dict[Any, Any], output: Tensor) -> Layer:
    return Turning(
        path=meter.path(module),
        tokens=_tokens(output),
        width=output.shape[-1],
        additions=module.rotation.additions,
    )


_COUNTERS: tuple[tuple[type[nn.Module], Any], ...] = (
    (RoundedLayer, _rounded),
    (nn.Linear, _matrix),
    (nn.Embedding, _embedding),
    (Turn, _turning),
    (nn.LayerNorm, _norm),
    (Neuron, _neurons),
    (spikegpt.TimeMixing, _time_mixing),
    (spikegpt.ChannelMixing, _channel_mixing),
)
