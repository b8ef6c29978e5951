"""A linear layer that a study may turn into a spiking one: in the format int4-sym-row-a4 it reads 4-bit spike counts.

How the counts of an input are made (`SpikingInput`) was calibrated when the network was converted; how many bits they
have is part of the format of the layer's weights, which an allocation chooses.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional as F

from qslm.errors import SpikeError
from qslm.formats.quantized import QuantizedTensor
from qslm.spiking.encoding import Encoding
from qslm.spiking.layer import RoundedLayer, SpikeActivations
from qslm.spiking.saliency import THRESHOLD, StaticSaliency


@dataclass(frozen=True, eq=False)
class SpikingInput:
    """How the spike counts of one input are made, which all layers that read it share.

    salient_bits, clip: as of `Encoding`; where the counts have more bits than salient_bits, salient ones have as many.
    A value is salient above the modified z-score `threshold`, or as the static `saliency` says. Raises SpikeError.
    """

    salient_bits: int = 8
    clip: float = 1.0
    threshold: float = THRESHOLD
    saliency: StaticSaliency | None = None
    _forms: dict[int, SpikeActivations] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.threshold < float("inf"):
            raise SpikeError(f"A threshold of {self.threshold} is no modified z-score.", "Give one such as 3.5.")
        Encoding(2, self.salient_bits, self.clip)

    def form(self, bits: int) -> SpikeActivations:
        """Spike counts of so many bits, the same object for all layers, so that an input is encoded once."""
        if bits not in self._forms:
            encoding = Encoding(bits, max(bits, self.salient_bits), self.clip)
            self._forms[bits] = SpikeActivations(encoding, self.threshold, self.saliency)
        return self._forms[bits]

    def layer(self, rounded: QuantizedTensor, bias: Tensor | None) -> RoundedLayer:
        """The spiking layer of weights whose format says the bits of the counts."""
        return RoundedLayer(rounded, bias, self.form(rounded.format.activations))


class SpikingSlot(nn.Linear):
    """A linear layer with numbers for weights, in whose place a spiking layer computes while it holds one.

    It takes over the parameters of `linear`. What it holds is in no state dict: an allocation says it.
    """

    spiking = True  # what `find_anatomy` sees

    def __init__(self, linear: nn.Linear, reads: SpikingInput) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.reads = reads
        self._held: list[RoundedLayer] = []  # a list, so that it is no module of the network

    @property
    def held(self) -> RoundedLayer | None:
        """The spiking layer that computes in its place; None where it computes itself."""
        return self._held[0] if self._held else None

    def hold(self, rounded: QuantizedTensor) -> None:
        """Compute with these weights: from spike counts where their format says so, else as a linear layer."""
        self._held = [self.reads.layer(rounded, self.bias)] if rounded.format.activations else []

    def release(self) -> None:
        """Compute with `weight` and numbers again."""
        self._held = []

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        return F.linear(x, self.weight, self.bias) if self.held is None else self.held(x)


def computing(module: nn.Module) -> nn.Module:
    """What computes at the place of a module: the spiking layer that a slot holds, or itself."""
    held = module.held if isinstance(module, SpikingSlot) else None
    return module if held is None else held
