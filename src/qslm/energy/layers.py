"""Layers that are no matrices: neurons, embeddings, norms, what SpikeGPT does beside its own, functions."""

from dataclasses import dataclass

from qslm.energy.operations import Operation, Operations, accumulate, mac, plain
from qslm.energy.terms import RAN, Layer, Terms, counted, stored_bytes


@dataclass(frozen=True, kw_only=True)
class Neurons(Layer):
    """Spiking neurons whose spikes go onto a residual stream: (tokens, channels) potentials, of which `spikes` fired.

    As they ran: LIF charges by v + (x - v) / 2, an IF by v + x, both compare with the threshold; a spike of an IF
    subtracts it. Each spike is one addition to the stream. The potential is read and written in float32. In its place
    the other machines add the current to the stream.
    """

    channels: int
    leaky: bool = True
    spikes: int = counted()

    @property
    def rate(self) -> float:
        """Spikes a neuron and token, 0 to 1."""
        return self.spikes / (self.tokens * self.channels) if self.tokens else 0.0

    def _work(self, machine: str, terms: Terms) -> Operations:
        potentials = self.tokens * self.channels
        if machine != RAN:
            return Operations({plain("add", "float32"): potentials})
        counts: dict[Operation, float] = {
            plain("compare", "float32"): potentials,
            plain("add", "float32"): potentials * (2 if self.leaky else 1) + self.spikes * (not self.leaky),
            plain("multiply", "float32"): potentials * self.leaky,
            accumulate("float32", "float32"): self.spikes,
        }
        return Operations(counts, {"state": 8 * potentials})


@dataclass(frozen=True, kw_only=True)
class Embedding(Layer):
    """A table (words, width), of which each token reads one row; `binarized`: only the signs of it.

    Stored as `sign` the bits are the answer; else each value is compared with 0. ones: of the binarized outputs.
    """

    width: int
    binarized: bool = False
    ones: int = counted()

    @property
    def rate(self) -> float:
        """The share of ones, 0 to 1."""
        return self.ones / (self.tokens * self.width) if self.tokens else 0.0

    def weight_bytes(self, machine: str, terms: Terms) -> int:
        """None: no pass reads the whole table."""
        return 0

    def _work(self, machine: str, terms: Terms) -> Operations:
        (name, shape), *_ = self.sites.items()
        format = self._kept(machine, name, terms)
        row = stored_bytes(format, (1, *shape[1:]), name)
        values = self.tokens * self.width
        counts: dict[Operation, float] = {}
        if self.binarized and format.kind != "sign":
            counts[plain("compare", "float32")] = values
        if format.is_integer and not self.binarized:
            counts[plain("rescale", "float32")] = values
        return Operations(counts, {"rows": self.tokens * row})


@dataclass(frozen=True, kw_only=True)
class Norm(Layer):
    """LayerNorm, or RMSNorm, which takes no mean: sum of squares, root, quotient, and the affine product."""

    width: int
    centered: bool = True

    def _work(self, machine: str, terms: Terms) -> Operations:
        values = self.tokens * self.width
        counts: dict[Operation, float] = {
            mac("float32", "float32", "float32"): values * (2 if self.centered else 1),
            plain("multiply", "float32"): values * (1 if self.centered else 2),
            plain("add", "float32"): values * (2 if self.centered else 0),
            plain("divide", "float32"): self.tokens * (2 if self.centered else 1),
            plain("root", "float32"): self.tokens,
        }
        return Operations(counts)


@dataclass(frozen=True, kw_only=True)
class TimeMixing(Layer):
    """SpikeGPT's attention without its matrices, a channel and token: three mixes, WKV, and the gate.

    A mix is a subtraction and a mac. WKV (`models.wkv.wkv_loop`) takes 6 additions, 2 maxima, 4 exponentials, 2
    products, 4 macs and a quotient; the gate sigmoid(r) * wkv an exponential, an addition, a quotient and a product.
    State in float32, read and written: the last input, and p, q and o of WKV.
    """

    width: int

    def _work(self, machine: str, terms: Terms) -> Operations:
        values = self.tokens * self.width
        counts: dict[Operation, float] = {
            plain("add", "float32"): (3 + 6 + 1) * values,
            mac("float32", "float32", "float32"): (3 + 4) * values,
            plain("compare", "float32"): 2 * values,
            plain("exponential", "float32"): (4 + 1) * values,
            plain("multiply", "float32"): (2 + 1) * values,
            plain("divide", "float32"): (1 + 1) * values,
        }
        return Operations(counts, {"state": 8 * 4 * values})


@dataclass(frozen=True, kw_only=True)
class ChannelMixing(Layer):
    """SpikeGPT's feed-forward part without its matrices: two mixes, relu(k)^2, and the gate.

    State in float32, read and written: the last input. positive: values of relu(k) above 0, which alone are squared.
    """

    width: int
    ffn_width: int
    positive: int = counted()

    def _work(self, machine: str, terms: Terms) -> Operations:
        values = self.tokens * self.width
        hidden = self.tokens * self.ffn_width
        squares = self.positive if machine == RAN else hidden
        counts: dict[Operation, float] = {
            plain("add", "float32"): (2 + 1) * values,
            mac("float32", "float32", "float32"): 2 * values,
            plain("compare", "float32"): hidden,
            plain("multiply", "float32"): squares + values,
            plain("exponential", "float32"): values,
            plain("divide", "float32"): values,
        }
        return Operations(counts, {"state": 8 * values})


@dataclass(frozen=True, kw_only=True)
class Elementwise(Layer):
    """A function of single values: relu is a comparison; a sigmoid, silu or gelu an exponential, a sum, a quotient and
    a product.
    """

    values: int = counted()
    smooth: bool = True

    def _work(self, machine: str, terms: Terms) -> Operations:
        kinds = ("exponential", "add", "divide", "multiply") if self.smooth else ("compare",)
        return Operations({plain(kind, "float32"): self.values for kind in kinds})


@dataclass(frozen=True, kw_only=True)
class Turning(Layer):
    """A Hadamard rotation that is applied online: additions of a token, and one product a value, which scales it."""

    width: int
    additions: int

    def _work(self, machine: str, terms: Terms) -> Operations:
        added, scaled = self.tokens * self.additions, self.tokens * self.width
        return Operations({plain("add", "float32"): added, plain("multiply", "float32"): scaled})
