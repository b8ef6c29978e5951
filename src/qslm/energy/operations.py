"""What a computation does, as numbers: operations by kind and operands, and bytes by what they hold."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

KINDS = ("mac", "accumulate", "add", "multiply", "compare", "shift", "rescale", "divide", "root", "exponential")
BYTES = ("weights", "buffer", "rows", "activations", "indices", "sums", "state")

Key = TypeVar("Key")


@dataclass(frozen=True, order=True)
class Operation:
    """One operation of a machine: its kind, the types of its operands, and the type of what it adds to.

    mac: a product of two operands, added to the result; accumulate: one operand, added to the result; rescale: an
    integer or a sum times a scale; the others take operands of one type, which is also their result.
    """

    kind: str
    operands: tuple[str, ...]
    result: str

    def __str__(self) -> str:
        arrow = f" -> {self.result}" if self.operands[0] != self.result or len(self.operands) > 1 else ""
        return f"{self.kind} {' x '.join(self.operands)}{arrow}"


def mac(one: str, other: str, result: str) -> Operation:
    """A product of two operands, added to the result."""
    return Operation("mac", (one, other), result)


def accumulate(weight: str, result: str) -> Operation:
    """A weight, added to a membrane potential or a sum: what one spike does to one neuron."""
    return Operation("accumulate", (weight,), result)


def plain(kind: str, type: str) -> Operation:
    """An operation on one type, such as `compare float32`."""
    return Operation(kind, (type,), type)


@dataclass(frozen=True)
class Operations:
    """How often each operation is done, and how many bytes are moved by what they hold (`BYTES`).

    weights: parameters that a pass reads once, whatever its tokens; buffer: weights as the arithmetic reads them beside
    it, once for every product and every accumulation, with no reuse in registers (derived); rows: of an embedding, read
    for every token; activations: inputs and outputs of matrices; indices: which of the inputs are salient; sums: of
    the spikes so far, at each time step within a token; state: from token to token, membrane potentials, recurrent
    states and the KV cache. In which memory they lie is the account's to say. Zeros are left out.
    """

    counts: Mapping[Operation, float] = field(default_factory=dict)
    bytes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts", {one: count for one, count in self.counts.items() if count})
        object.__setattr__(self, "bytes", {what: count for what, count in self.bytes.items() if count})

    def __add__(self, other: "Operations") -> "Operations":
        return Operations(add_counts(self.counts, other.counts), add_counts(self.bytes, other.bytes))

    def times(self, factor: float) -> "Operations":
        """Everything so many times."""
        return Operations(
            {one: count * factor for one, count in self.counts.items()},
            {what: count * factor for what, count in self.bytes.items()},
        )

    def total(self, kind: str) -> float:
        """How many operations of a kind there are, whatever their operands."""
        return sum(count for one, count in self.counts.items() if one.kind == kind)


def add_counts(*parts: Mapping[Key, float]) -> dict[Key, float]:
    """The counts of all parts, by what was counted, in the order in which they come."""
    found: dict[Key, float] = {}
    for part in parts:
        for key, count in part.items():
            found[key] = found.get(key, 0) + count
    return found


def quantization(values: int, steps: int) -> dict[Operation, float]:
    """What it takes to round values to steps of their own: the largest of each, its reciprocal, products, rounding."""
    return {
        plain("compare", "float32"): values,
        plain("divide", "float32"): steps,
        plain("rescale", "float32"): values,
        plain("add", "float32"): values,
    }
