"""A matrix of integer weights that runs on spikes, on integers or on floats, and neurons that hold its scale."""

from dataclasses import dataclass, field

from qslm.energy.operations import Operation, Operations, accumulate, add_counts, mac, plain, quantization
from qslm.energy.terms import FLOATING, RAN, SPARSE, Layer, Terms, bits_of, counted, stored_bytes
from qslm.formats import FLOAT16, Format
from qslm.spiking.trains import Cost

NO_COST = Cost(0, 0, 0, 0)
SELECTION = 1.5  # comparisons a value to find a median (Floyd and Rivest, CACM 1975); derived that a machine does so


@dataclass(frozen=True, kw_only=True)
class Rounded(Layer):
    """A `RoundedLayer`: integer weights, and inputs in the form `kind`, spikes, integers or float.

    format: of the weights as they ran, where the terms say nothing of them; shifted: groups of a row whose sums are
    shifted before they are added; bits, wide_bits: of normal and of salient inputs; groups: scales of a token; detects:
    comparisons and subtractions of a value to find the salient ones; encoded: inputs that were put into their form
    here, not for a sibling that reads the same tensor; encoded_tokens: their tokens; cost: of the spike trains; shifts:
    of one output, one a time step of bit planes and one a spike of a massive value; updates: of the sums of one output,
    which are read and written at each time step (first spikes have two of them); input_bytes, index_bytes: of the
    stored inputs.

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
    shifted: int = 0
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
        format = FLOAT16 if machine == FLOATING else terms.formats.get(f"{self.path}.weight", self.format)
        return stored_bytes(format, (self.out, self.width), self.path) + 4 * self.out * self.bias

    def _bits(self, terms: Terms) -> int:
        """Of a weight: those that the layer ran with where the terms have no integers for it."""
        format = terms.formats.get(f"{self.path}.weight", self.format)
        return format.bits if format.is_integer else self.format.bits

    def _work(self, machine: str, terms: Terms) -> Operations:
        outputs = self.tokens * self.out
        leaving = outputs * (self.fired_bits or bits_of(terms.activations)) / 8
        products = self._products(machine, terms)
        bits = 16 if machine == FLOATING else self._bits(terms)
        uses = sum(count for one, count in products.items() if one.kind in ("mac", "accumulate"))
        moved = {"buffer": uses * bits / 8}
        if machine == FLOATING:
            moved["activations"] = 2 * (self.inputs + outputs)
            return Operations(add_counts(products, self._biases()), moved)
        read = self.inputs * bits_of(terms.activations) / 8 if self.kind == "float" else self.input_bytes
        moved |= {"activations": read - self.index_bytes + leaving, "indices": self.index_bytes}
        if machine == RAN:
            moved["sums"] = 8 * (self.out * self.updates + outputs * self._most)
            if self.fired_bits is not None:
                fired = firing(outputs, self._most, self.fired_spikes)
                return Operations(add_counts(products, self._encoding(), self._thresholds()), moved) + fired
        if self.kind == "float" and machine == RAN:
            return Operations(add_counts(products, {plain("rescale", "float32"): outputs}, self._biases()), moved)
        return Operations(add_counts(products, self._rescaling(), self._encoding(), self._biases()), moved)

    def _products(self, machine: str, terms: Terms) -> dict[Operation, float]:
        """What weights and inputs do together."""
        weight, dense = f"int{self._bits(terms)}", (self.live if machine == SPARSE else self.inputs) * self.out
        if machine == FLOATING:
            return {mac("float16", "float16", "float16"): dense}
        if self.kind == "float" and machine == RAN:
            return {mac(weight, terms.activations, terms.activations): self.live * self.out}
        if self.kind == "float":
            return {mac(weight, f"int{bits_of(terms.activations)}", "int32"): dense}
        sums = self.tokens * self.out * self.shifted
        groups: dict[Operation, float] = {plain("shift", "int32"): sums, plain("add", "int32"): sums}
        if self.kind == "spikes" and machine == RAN:
            spikes: dict[Operation, float] = {
                accumulate(weight, "int32"): self.out * self.cost.accumulates,
                plain("add", "int32"): self.out * self.cost.additions,
                plain("shift", "int32"): self.out * self.shifts,
            }
            return add_counts(spikes, groups)
        wide = self.salient * self.out
        narrow = {mac(weight, f"int{self.bits}", "int32"): dense - wide}
        shifts = {plain("shift", "int32"): self.massive * self.out * (self.kind == "spikes")}
        return add_counts(narrow, {mac(weight, f"int{self.wide_bits}", "int32"): wide}, shifts, groups)

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
        return add_counts(found, self._rescaling(), self._biases(), second)

    def _encoding(self) -> dict[Operation, float]:
        """Detection, steps and rounding, once for all layers that read the same tensor."""
        if self.kind == "float":  # as it ran; integer machines round it here
            return quantization(self.inputs, self.tokens)
        compares, subtractions = self.detects
        found = quantization(self.encoded, self.encoded_tokens * self.groups)
        found[plain("compare", "float32")] += compares * self.encoded
        found[plain("add", "float32")] += subtractions * self.encoded
        return found

    def _biases(self) -> dict[Operation, float]:
        return {plain("add", "float32"): self.tokens * self.out * self.bias}


def firing(neurons: int, steps: int, spikes: int) -> Operations:
    """What integrate-and-fire neurons do whose threshold holds the scale: no rescaling at all.

    They fire after the last arrival alone (derived): `spiking.fire_events`, of the same counts, also fires before it,
    and takes back what came too early.

    One comparison a neuron and time step, and one subtraction of the threshold a spike.
    """
    return Operations({plain("compare", "int32"): neurons * steps, plain("add", "int32"): spikes})
