"""A matrix whose weights and inputs are floats as it runs, whatever format its weights are rounded to."""

from dataclasses import dataclass

from qslm.energy.operations import Operation, Operations, accumulate, add_counts, mac, plain, quantization
from qslm.energy.terms import FLOATING, INTEGERS, RAN, SPARSE, Layer, Terms, bits_of, counted
from qslm.formats import Format, matrix_shape


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
        counts = add_counts(
            {mac(weight, activation, total): products * self.out, accumulate(weight, total): spikes * self.out},
            self._scaling(machine, terms, total),
            quantization(self.inputs, self.tokens) if whole else {},
            {plain("add", "float32"): self.tokens * self.out * self.bias},
        )
        moved = (self.inputs + self.tokens * self.out) * bits_of(activation) / 8
        uses = (products + spikes) * self.out
        return Operations(counts, {"activations": moved, "buffer": uses * bits_of(weight) / 8})

    def _weight(self, machine: str, terms: Terms) -> tuple[str, str]:
        """The types of weights and activations."""
        if machine == FLOATING:
            return "float16", "float16"
        format, bits = self._format(terms), bits_of(terms.activations)
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
            found = add_counts(found, {plain("add", total): self.inputs, mac(f"int{format.bits}", total, total): sums})
        return found
