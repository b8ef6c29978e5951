"""Softmax attention beside its matrices, and what it keeps: keys and values of all tokens before."""

from dataclasses import dataclass, replace
from typing import Self

from qslm.energy.operations import Operation, Operations, add_counts, mac, plain, quantization
from qslm.energy.terms import FLOATING, Layer, Terms, bits_of, counted
from qslm.models.hadamard import Rotation


@dataclass(frozen=True, kw_only=True)
class Attention(Layer):
    """Softmax attention without its matrices, with keys and values in FP16: heads, key and value heads, head_dim.

    causal: a token sees those before it and itself; otherwise all of its window.
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
    causal: bool = True
    rotary: bool = True
    cache_bits: int | None = None
    dynamic_values: bool = False
    pairs: int = counted()

    def in_windows(self, tokens: int) -> Self:
        """The same tokens in windows of so many: all of a window are seen, or those before and itself."""
        return replace(self, pairs=self.tokens * (tokens + 1) // 2 if self.causal else self.tokens * tokens)

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
        entry = 2 * self.kv_heads * self.head_dim * bits_of(held) / 8
        if bits is not None:
            counts = add_counts(counts, self._of_integers(bits))
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
        return add_counts(rounding, {plain("compare", "float32"): keys, plain("add", "float32"): turned}, scaling)
