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
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import prod
from typing import Any, Self

from qslm.allocation import Allocation
from qslm.energy.operations import Operations
from qslm.formats import FLOAT16, FLOAT32, Format, data_bytes, stored_tensors

RAN, INTEGER, SPARSE, FLOATING = "ran", "integer", "sparse", "float16"
MACHINES = (RAN, INTEGER, SPARSE, FLOATING)
INTEGERS = (INTEGER, SPARSE)
SPELLED = {RAN: "as it ran", INTEGER: "integers", SPARSE: "integers, no zeros", FLOATING: "FP16"}  # for people

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
        return sum(stored_bytes(self._kept(machine, name, terms), shape, name) for name, shape in self.sites.items())

    def operations(self, machine: str, terms: Terms) -> Operations:
        """What a machine does for all tokens, in one pass that reads the weights once."""
        return self._work(machine, terms) + Operations({}, {"weights": self.weight_bytes(machine, terms)})

    def in_windows(self, tokens: int) -> Self:
        """As if its tokens had come in windows of so many, for work that grows with their square."""
        return self

    @abstractmethod
    def _work(self, machine: str, terms: Terms) -> Operations:
        """The operations, and the bytes that are moved for each token."""

    def _kept(self, machine: str, site: str, terms: Terms) -> Format:
        return FLOAT16 if machine == FLOATING else terms.format(site)


def stored_bytes(format: Format, shape: tuple[int, ...], name: str) -> int:
    """Bytes of a tensor of this shape in a format, its scales and zero points included; 0 of an empty one."""
    return sum(map(data_bytes, stored_tensors(format, shape, name))) if prod(shape) else 0


def bits_of(type: str) -> int:
    """The bits of a type: 4 of `int4`, 16 of `float16`."""
    return int(type.removeprefix("int").removeprefix("float"))
