"""What went through a layer, and which operations that makes: as it ran, on integer machines, and in FP16.

A layer is counted over some tokens; all numbers are sums over them. Four machines do the same work:

| machine | matrices                                            | neurons                  | weights         |
| ------- | --------------------------------------------------- | ------------------------ | --------------- |
| ran     | zero inputs are skipped, spikes are accumulated     | as they fired            | as they are     |
| integer | every input is multiplied, in integers of its bits  | none: residual additions | as they are     |
| sparse  | the same, but for zero inputs, which are skipped    | none: residual additions | as they are     |
| float16 | every input is multiplied, in FP16                  | none: residual additions | in 2 bytes each |

So `integer` is the bit-matched baseline without spikes, and what `sparse` saves is due to zeros alone, not to spikes.
What is neither a matrix nor a neuron (norms, WKV, softmax) is done in float32 by all of them. Elementwise operations
are taken as fused with the matrix beside them, so activations move only as its inputs and outputs (derived).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from math import prod
from typing import Any, Self

from qslm.allocation import Allocation
from qslm.energy.operations import Operation, Operations, accumulate, mac, plain
from qslm.formats import FLOAT16, FLOAT32, Format, data_bytes, matrix_shape, stored_tensors
from qslm.models.hadamard import Rotation
from qslm.spiking.trains import Cost

RAN, INTEGER, SPARSE, FLOATING = "ran", "integer", "sparse", "float16"
MACHINES = (RAN, INTEGER, SPARSE, FLOATING)
INTEGERS = (INTEGER, SPARSE)
NO_COST = Cost(0, 0, 0, 0)
SELECTION = 1.5  # comparisons a value to find a median (Floyd and Rivest, CACM 1975); derived that a machine does so

Sites = Mapping[str, tuple[int, ...]]  # shapes by name


@dataclass(frozen=True)
class Terms:
    """How the numbers of a network are held: the formats of its sites by name, float32 where it has none, and the type
    of the activations that its float matrices see, float16 or float32.
    """

    formats: Mapping[str, Format] = field(default_factory=dict)
    activations: str = "float16"

    @classmethod
    def of(cls, allocation: Allocation, activations: str = "float16") -> "Terms":
        """Those of an allocation."""
        return cls({site.name: format for site, format in allocation.items()}, activations)

    def format(self, site: str) -> Format:
        """How a site is stored."""
        return self.formats.get(site, FLOAT32)


def counted() -> Any:
    """A field that is summed over calls, from 0."""
    return field(default=0, metadata={"counted": True})


@dataclass(frozen=True, kw_only=True)
class Layer(ABC):
    """What went through one layer; `sites` are the shapes of the parameters that it owns, by name."""

    path: str
    sites: Sites = field(default_factory=dict)
    tokens: int = counted()

    def __add__(self, other: Self) -> Self:
        """The same layer over the tokens of two calls."""
        names = [one.name for one in fields(self) if one.metadata.get("counted")]
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in names})

    def weight_bytes(self, machine: str, terms: Terms) -> int:
        """Bytes of its parameters, which a pass reads once."""
        return sum(_stored(self._kept(machine, name, terms), shape, name) for name, shape in self.sites.items())

    def operations(self, machine: str, terms: Terms) -> Operations:
        """What a machine does for all tokens, in one pass that reads the weights once."""
        return self._work(machine, terms) + Operations({}, {"weights": self.weight_bytes(machine, terms)})

    @abstractmethod
    def _work(self, machine: str, terms: Terms) -> Operations:
        """The operations, and the bytes that are moved for each token."""

    def _kept(self, machine: str, site: str, terms: Terms) -> Format:
        return FLOAT16 if machine == FLOATING else terms.format(site)


@dataclass(frozen=True, kw_only=True)
class Matrix(Layer):
    """A float matrix (out, width). zeros: inputs that were 0; spikes: inputs of calls that had only -1, 0 and 1.

    Integer weights enter as codes: the sum of each scale is rescaled, and where there are zero points the sum of the
    inputs of each group is taken once and multiplied by them. Symmetric formats have none.
    """

    out: int
    width: int
    bias: bool = False
    zeros: int = counted()
    spikes: int = counted()

    @property
    def inputs(self) -> int:
        """How many numbers came in."""
        return self.tokens * self.width

    def _work(self, machine: str, terms: Terms) -> Operations:
        weight, activation = self._weight(machine, terms)
        spikes = self.spikes if machine == RAN else 0
        products = self.inputs - spikes - (self.zeros if machine in (RAN, SPARSE) else 0)
        whole = activation.startswith("int")
        total = "int32" if whole else activation
        counts = _sum(
            {mac(weight, activation, total): products * self.out, accumulate(weight, total): spikes * self.out},
            self._scaling(machine, terms, total),
            quantization(self.inputs, self.tokens) if whole else {},
            {plain("add", "float32"): self.tokens * self.out * self.bias},
        )
        moved = (self.inputs + self.tokens * self.out) * _bits(activation) / 8
        uses = (products + spikes) * self.out
        return Operations(counts, {"activations": moved, "buffer": uses * _bits(weight) / 8})

    def _weight(self, machine: str, terms: Terms) -> tuple[str, str]:
        """The types of weights and activations."""
        if machine == FLOATING:
            return "float16", "float16"
        format, bits = self._format(terms), _bits(terms.activations)
        if machine in INTEGERS:
            return f"int{format.bits}", f"int{bits}"
        return (f"int{format.bits}" if format.kind != "float" else f"float{format.bits}"), terms.activations

    @property
    def _site(self) -> str:
        return next(name for name, shape in self.sites.items() if len(shape) > 1)

    def _format(self, terms: Terms) -> Format:
        return terms.format(self._site)

    def _scaling(self, machine: str, terms: Terms, total: str) -> dict[Operation, float]:
        """One rescaling a scale and token, and one by the step of a token where activations are integers."""
        format = self._format(terms)
        if machine == FLOATING or not (format.is_integer or machine in INTEGERS):
            return {}
        groups = format.scale_shape(*matrix_shape(self.sites[self._site]))[1] if format.is_integer else 1
        sums = self.tokens * self.out * groups
        found: dict[Operation, float] = {
            plain("rescale", "float32"): sums + self.tokens * self.out * (machine in INTEGERS),
            plain("add", "float32"): sums - self.tokens * self.out,
        }
        if format.has_zeros:
            found = _sum(found, {plain("add", total): self.inputs, mac(f"int{format.bits}", total, total): sums})
        return found


@dataclass(frozen=True, kw_only=True)
class Rounded(Layer):
    """A `RoundedLayer`: integer weights in `format`, and inputs in the form `kind`, spikes, integers or float.

    bits, wide_bits: of normal and of salient inputs; groups: scales of a token; detects: comparisons and subtractions
    of a value to find the salient ones; encoded: inputs that were put into their form here, not for a sibling that
    reads the same tensor; encoded_tokens: their tokens; cost: of the spike trains; shifts: of one output, one a time
    step of bit planes and one a spike of a massive value; updates: of the sums of one output, which are read and
    written at each time step (first spikes have two of them); input_bytes, index_bytes: of the stored inputs.

    fired_bits: of outputs that leave as spike counts, None where numbers leave; fired_heads: next steps of a token that
    are found in a second pass, 0 where they are static; fired_spikes: the sum of the counts' magnitudes.
    """

    out: int
    width: int
    format: Format
    kind: str
    bits: int
    wide_bits: int
    groups: int = 1
    asymmetric: bool = False
    detects: tuple[float, float] = (0, 0)
    bias: bool = False
    fired_bits: int | None = None
    fired_heads: int = 0
    fired_spikes: int = counted()
    zeros: int = counted()
    salient: int = counted()
    massive: int = counted()
    encoded: int = counted()
    encoded_tokens: int = counted()
    cost: Cost = field(default=NO_COST, metadata={"counted": True})
    shifts: int = counted()
    updates: int = counted()
    input_bytes: int = counted()
    index_bytes: int = counted()

    @property
    def inputs(self) -> int:
        """How many numbers came in."""
        return self.tokens * self.width

    @property
    def live(self) -> int:
        """Inputs other than 0, in the form in which they came."""
        return self.inputs - self.zeros

    @property
    def rate(self) -> float:
        """Spikes an input and time step, 0 to 1."""
        slots = self.cost.steps * self.width
        return self.cost.spikes / slots if slots else 0.0

    def weight_bytes(self, machine: str, terms: Terms) -> int:
        """Bytes of the weights, and of the bias in float32."""
        weights = _stored(FLOAT16 if machine == FLOATING else self.format, (self.out, self.width), self.path)
        return weights + 4 * self.out * self.bias

    def _work(self, machine: str, terms: Terms) -> Operations:
        outputs = self.tokens * self.out
        leaving = outputs * (self.fired_bits or _bits(terms.activations)) / 8
        products = self._products(machine, terms)
        bits = 16 if machine == FLOATING else self.format.bits
        uses = sum(count for one, count in products.items() if one.kind in ("mac", "accumulate"))
        moved = {"buffer": uses * bits / 8}
        if machine == FLOATING:
            moved["activations"] = 2 * (self.inputs + outputs)
            return Operations(_sum(products, self._biases()), moved)
        moved |= {"activations": self.input_bytes - self.index_bytes + leaving, "indices": self.index_bytes}
        if machine == RAN:
            moved["sums"] = 8 * (self.out * self.updates + outputs * self._most)
            if self.fired_bits is not None:
                return Operations(_sum(products, self._encoding(), self._thresholds()), moved) + firing(
                    outputs, self._most, self.fired_spikes
                )
        if self.kind == "float" and machine == RAN:
            return Operations(_sum(products, {plain("rescale", "float32"): outputs}, self._biases()), moved)
        return Operations(_sum(products, self._rescaling(), self._encoding(), self._biases()), moved)

    def _products(self, machine: str, terms: Terms) -> dict[Operation, float]:
        """What weights and inputs do together."""
        weight, dense = f"int{self.format.bits}", (self.live if machine == SPARSE else self.inputs) * self.out
        if machine == FLOATING:
            return {mac("float16", "float16", "float16"): dense}
        if self.kind == "float" and machine == RAN:
            return {mac(weight, terms.activations, terms.activations): self.live * self.out}
        if self.kind == "float":
            return {mac(weight, f"int{_bits(terms.activations)}", "int32"): dense}
        if self.kind == "spikes" and machine == RAN:
            return {
                accumulate(weight, "int32"): self.out * self.cost.accumulates,
                plain("add", "int32"): self.out * self.cost.additions,
                plain("shift", "int32"): self.out * self.shifts,
            }
        wide = self.salient * self.out
        narrow = {mac(weight, f"int{self.bits}", "int32"): dense - wide}
        shifts = {plain("shift", "int32"): self.massive * self.out * (self.kind == "spikes")}
        return _sum(narrow, {mac(weight, f"int{self.wide_bits}", "int32"): wide}, shifts)

    def _rescaling(self) -> dict[Operation, float]:
        """Of the sum of each group by its scale, and of the output by that of its row.

        Zero points of asymmetric activations are one more mac an output, with the sum of its row.
        """
        outputs = self.tokens * self.out
        found: dict[Operation, float] = {plain("rescale", "float32"): outputs * (self.groups + 1)}
        found[plain("add", "float32")] = outputs * (self.groups - 1)
        if self.asymmetric:
            found[mac("float32", "float32", "float32")] = outputs * self.groups
        return found

    @property
    def _most(self) -> int:
        """Time steps after the last arrival in which neurons fire: their largest count; 0 where they do not."""
        return 0 if self.fired_bits is None else (1 << (self.fired_bits - 1)) - 1

    def _thresholds(self) -> dict[Operation, float]:
        """Of neurons that fire: one product each; a bias is one more and an addition, instead of one in floats.

        A second pass rescales the potentials, and finds the largest of each head and the quotient that is its step.
        """
        outputs = self.tokens * self.out
        found: dict[Operation, float] = {
            plain("multiply", "float32"): outputs * (1 + self.bias),
            plain("add", "int32"): outputs * self.bias,
        }
        if not self.fired_heads:
            return found
        second: dict[Operation, float] = {
            plain("compare", "float32"): outputs,
            plain("divide", "float32"): self.tokens * self.fired_heads,
        }
        return _sum(found, self._rescaling(), self._biases(), second)

    def _encoding(self) -> dict[Operation, float]:
        """Detection, steps and rounding, once for all layers that read the same tensor."""
        compares, subtractions = self.detects
        found = quantization(self.encoded, self.encoded_tokens * self.groups)
        found[plain("compare", "float32")] += compares * self.encoded
        found[plain("add", "float32")] += subtractions * self.encoded
        return found

    def _biases(self) -> dict[Operation, float]:
        return {plain("add", "float32"): self.tokens * self.out * self.bias}


def quantization(values: int, steps: int) -> dict[Operation, float]:
    """What it takes to round values to steps of their own: the largest of each, its reciprocal, products, rounding."""
    return {
        plain("compare", "float32"): values,
        plain("divide", "float32"): steps,
        plain("rescale", "float32"): values,
        plain("add", "float32"): values,
    }


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
        row = _stored(format, (1, *shape[1:]), name)
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
class Attention(Layer):
    """Softmax attention without its matrices, with keys and values in FP16: heads, key and value heads, head_dim.

    pairs: of a token and one that it sees, itself included. A pair and head take 2 head_dim macs and an exponential,
    a token and head one quotient and head_dim products; a rotation of a position, where there is one (`rotary`), a
    product and a mac a value. The cache is written once a token and read once a pair.

    cache_bits: of a cache that holds integers, on all machines but float16. Queries and keys are turned by additions
    (`models.cache`), and keys are rounded here. Keys have a step in float32 and a zero point of as many bits a token
    and head: queries meet codes, and their sum, taken once, the zero point; then the pair is rescaled. Values come as
    they were fired, and have one step a head, which rescales the mixture; or where dynamic_values one a token and head,
    held in float32, which rescales every pair.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rotary: bool = True
    cache_bits: int | None = None
    dynamic_values: bool = False
    pairs: int = counted()

    def _work(self, machine: str, terms: Terms) -> Operations:
        pairs, outputs = self.pairs * self.heads, self.tokens * self.heads * self.head_dim
        rotated = (outputs + self.tokens * self.kv_heads * self.head_dim) * self.rotary
        bits = None if machine == FLOATING else self.cache_bits
        held = "float16" if bits is None else f"int{bits}"
        counts: dict[Operation, float] = {
            mac("float16", held, "float16"): 2 * self.head_dim * pairs,
            plain("exponential", "float32"): pairs,
            plain("compare", "float32"): pairs,
            plain("add", "float32"): 2 * pairs,
            plain("divide", "float32"): self.tokens * self.heads,
            plain("multiply", "float32"): outputs + rotated,
            mac("float32", "float32", "float32"): rotated,
        }
        entry = 2 * self.kv_heads * self.head_dim * _bits(held) / 8
        if bits is not None:
            counts = _sum(counts, self._of_integers(bits))
            entry += self.kv_heads * (4 + bits / 8 + 4 * self.dynamic_values)
        return Operations(counts, {"state": entry * (self.tokens + self.pairs)})

    def _of_integers(self, bits: int) -> dict[Operation, float]:
        """What an integer cache adds: rounding keys, which compares for both ends; zero points, and scales."""
        pairs, outputs = self.pairs * self.heads, self.tokens * self.heads * self.head_dim
        keys = self.tokens * self.kv_heads * self.head_dim
        turned = self.tokens * (self.heads + self.kv_heads) * Rotation.of(self.head_dim).additions
        scaling: dict[Operation, float] = {
            plain("add", "float16"): outputs,
            mac("float16", f"int{bits}", "float16"): pairs,
            plain("rescale", "float32"): pairs + (pairs if self.dynamic_values else outputs),
        }
        rounding = quantization(keys, self.tokens * self.kv_heads)
        return _sum(rounding, {plain("compare", "float32"): keys, plain("add", "float32"): turned}, scaling)


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


def firing(neurons: int, steps: int, spikes: int) -> Operations:
    """What integrate-and-fire neurons do whose threshold holds the scale (`spiking.fire_events`): no rescaling at all.

    One comparison a neuron and time step, and one subtraction of the threshold a spike.
    """
    return Operations({plain("compare", "int32"): neurons * steps, plain("add", "int32"): spikes})


def work_shares(layers: Iterable[Layer]) -> tuple[float, float]:
    """Of the multiply-accumulates that dense matrices would do: the share that meets a zero, and the share that spikes
    turn into accumulates; 0 to 1 each.
    """
    dense = zeros = spikes = 0
    for layer in layers:
        if isinstance(layer, Matrix | Rounded):
            fired = layer.spikes if isinstance(layer, Matrix) else (layer.kind == "spikes") * layer.live
            dense += layer.inputs * layer.out
            zeros += layer.zeros * layer.out
            spikes += fired * layer.out
    return (zeros / dense, spikes / dense) if dense else (0.0, 0.0)


def _stored(format: Format, shape: tuple[int, ...], name: str) -> int:
    return sum(map(data_bytes, stored_tensors(format, shape, name))) if prod(shape) else 0


def _bits(type: str) -> int:
    return int(type.removeprefix("int").removeprefix("float"))


def _sum(*parts: Mapping[Operation, float]) -> dict[Operation, float]:
    found: dict[Operation, float] = {}
    for part in parts:
        for one, count in part.items():
            found[one] = found.get(one, 0) + count
    return found
