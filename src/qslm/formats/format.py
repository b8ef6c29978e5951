"""How the numbers of one tensor are stored."""

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import Literal

from qslm.errors import FormatError

Kind = Literal["integer", "float", "sign"]
Granularity = Literal["tensor", "row", "group"]
ScaleType = Literal["float16", "float32", "uint8", "power"]
ValueType = Literal["float16", "float32", "bfloat16"]

INTEGER_BITS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
GROUP_SIZES = (32, 64, 128)
ACTIVATIONS = (2, 3, 4, 5, 6, 7, 8)  # bits of spike counts

_REMEDY = (
    "Choose a format such as int4-row, int4-g64, int3-g32-s8, int8-sym-tensor, int4-g128-s32, float32, float16, "
    "bfloat16 or sign."
)
_NO_SCALES = (False, "row", 0, "float16")  # the defaults, so that equal formats compare equal
_INTEGER = re.compile(
    r"int([1-9][0-9]?)(-sym)?(-tensor|-row|-g([1-9][0-9]{1,2}))?(-s32|-s8|-p2)?(-a([2-8]))?", re.ASCII
)
_ENDINGS: dict[ScaleType, str] = {
    "float16": "",
    "float32": "-s32",
    "uint8": "-s8",
    "power": "-p2",
}  # of a format's text
_SCALE_BITS: dict[ScaleType, int] = {"float16": 16, "float32": 32, "uint8": 8, "power": 8}


@dataclass(frozen=True)
class Format:
    """A number format; `str` gives its canonical text and `Format.parse` reads it.

    Integer formats of b bits stand for the numbers `(code - zero) * scale`. Affine codes are 0 to 2^b - 1
    with an integer zero point of the same range; symmetric codes are -2^(b-1) to 2^(b-1) - 1 with zero point
    0. So zero is always representable. There is one scale per tensor, per row, or per group of `group_size`
    along the input, the last of which may be shorter:  (out, in) = (4, 100), groups of 64 -> scales (4, 2).

    Scales are float16, float32 (`-s32`), or take 8 bits (`-s8`): `code * step` with codes 1 to 255 and one step, a
    float32, for the whole tensor. This is the double quantization of QLoRA (arXiv 2305.14314), with integers and one
    step in place of its blocks of 8-bit floats (derived). Or a group has a shift of 8 bits (`-p2`): `step * 2^shift`,
    with one step, a float32, for each row; such codes, shifted, are integers of 8 bits, which a threshold can hold
    (SpikeQuant; derived).

    `sign` is one bit, exact for a tensor of which only `x >= 0` is read. `brain` tells bfloat16 from float16.

    `activations` (`-a4`) are the bits of the spike counts that the matrix multiplies, sign included; 0 where it reads
    numbers. Such weights are symmetric integers of 8 bits at most with one scale a row, which a threshold can hold.
    """

    kind: Kind
    bits: int
    symmetric: bool = False
    granularity: Granularity = "row"
    group_size: int = 0
    scale_type: ScaleType = "float16"
    brain: bool = False
    activations: int = 0

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise FormatError(problem, _REMEDY)

    def _problem(self) -> str:
        if self.kind == "integer":
            return self._integer_problem()
        if self.kind not in ("float", "sign"):
            return f"{self.kind!r} is not a kind of number format."
        if (self.symmetric, self.granularity, self.group_size, self.scale_type) != _NO_SCALES:
            return f"A {self.kind} format has no scales to choose."
        if self.activations:
            return f"Weights in a {self.kind} format read no spike counts."
        widths = {"float": (16,) if self.brain else (16, 32), "sign": () if self.brain else (1,)}[self.kind]
        return "" if self.bits in widths else f"There is no {self.kind} format of {self.bits} bits."

    def _integer_problem(self) -> str:
        if self.bits not in INTEGER_BITS or self.brain:
            return f"There is no integer format of {self.bits} bits; there are {_listed(INTEGER_BITS)}."
        if self.granularity not in ("tensor", "row", "group"):
            return f"{self.granularity!r} is not a granularity; there are tensor, row and group."
        if self.granularity == "group" and self.group_size not in GROUP_SIZES:
            return f"There are no groups of {self.group_size}; there are {_listed(GROUP_SIZES)}."
        if self.granularity != "group" and self.group_size != 0:
            return f"One scale per {self.granularity} has no group size."
        if self.scale_type not in _ENDINGS:
            return f"Scales are not stored as {self.scale_type!r}; there are {_listed(tuple(_ENDINGS))}."
        if (self.scale_type, self.granularity) == ("uint8", "tensor"):
            return "A single scale per tensor gains nothing from 8 bits, which need a step beside them."
        if self.scale_type == "power" and not (self.symmetric and self.granularity == "group" and 2 <= self.bits <= 7):
            return "Scales that are shifts are those of groups of symmetric integers of 2 to 7 bits: int4-sym-g64-p2."
        return self._activations_problem()

    def _activations_problem(self) -> str:
        if not self.activations:
            return ""
        if self.activations not in ACTIVATIONS:
            return f"There are no spike counts of {self.activations} bits; there are {_listed(ACTIVATIONS)}."
        by_rows = self.granularity == "row" and not self.has_step
        if not 2 <= self.bits <= 8 or not self.symmetric or not (by_rows or self.scale_type == "power"):
            return (
                "Weights that read spike counts are symmetric integers of 2 to 8 bits with one scale a row of 16 or 32 "
                "bits, or shifts of it in groups, such as int4-sym-row-a4 and int4-sym-g64-p2-a4."
            )
        return ""

    @cached_property
    def _text(self) -> str:
        if self.kind == "sign":
            return "sign"
        if self.kind == "float":
            return f"{'b' if self.brain else ''}float{self.bits}"
        grain = f"g{self.group_size}" if self.granularity == "group" else self.granularity
        reads = f"-a{self.activations}" if self.activations else ""
        return f"int{self.bits}{'-sym' * self.symmetric}-{grain}{_ENDINGS[self.scale_type]}{reads}"

    def __str__(self) -> str:
        return self._text

    @classmethod
    def parse(cls, text: str) -> "Format":
        """Read a format from its text; `int4` alone is `int4-row`. Raises FormatError."""
        return _parse(text)

    @property
    def is_integer(self) -> bool:
        """Whether it has integer codes and scales."""
        return self.kind == "integer"

    @property
    def has_zeros(self) -> bool:
        """Whether every scale has a zero point beside it."""
        return self.kind == "integer" and not self.symmetric

    @property
    def has_tiles(self) -> bool:
        """Whether its codes are stored as `tiles` says; wider ones are one bit stream."""
        return self.kind != "float" and self.bits <= 8

    @property
    def has_step(self) -> bool:
        """Whether its scales are multiples of one step of the whole tensor, or shifts of one of each row."""
        return self.scale_type in ("uint8", "power")

    @property
    def most_shift(self) -> int:
        """By how many bits a group may be shifted, where scales are shifts, so that its codes fit into 8 bits."""
        return 8 - self.bits

    @property
    def lowest(self) -> int:
        """The smallest integer code."""
        return -(1 << (self.bits - 1)) if self.symmetric else 0

    @property
    def highest(self) -> int:
        """The largest integer code."""
        return self.lowest + (1 << self.bits) - 1

    @property
    def span(self) -> int:
        """The most steps that a number can be away from zero."""
        return max(-self.lowest, self.highest)

    @property
    def value_type(self) -> ValueType:
        """The type in which a float format stores its numbers."""
        return "bfloat16" if self.brain else "float32" if self.bits == 32 else "float16"

    @property
    def scale_bits(self) -> int:
        """Bits of a stored scale."""
        return _SCALE_BITS[self.scale_type]

    @property
    def bits_per_weight(self) -> float:
        """Bits of a weight with its share of the scale and zero point, in a matrix of endless rows."""
        beside = self.scale_bits + self.bits * self.has_zeros
        return self.bits + beside / self.group_size if self.group_size else float(self.bits)

    def step_shape(self, rows: int) -> tuple[int, ...]:
        """Steps of a matrix, where there are some: one, or one a row."""
        return (rows, 1) if self.scale_type == "power" else (1,)

    def scale_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """(scales along the output, scales along the input) of an (out, in) matrix."""
        if self.granularity == "tensor":
            return 1, 1
        return rows, -(-columns // self.group_size) if self.granularity == "group" else 1


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(out, in) of a tensor of any shape: the first axis against all others; a vector is one row."""
    return (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))


@lru_cache(maxsize=1024)
def _parse(text: str) -> Format:
    named = {"float32": FLOAT32, "float16": FLOAT16, "bfloat16": BFLOAT16, "sign": SIGN}
    if text in named:
        return named[text]
    matched = _INTEGER.fullmatch(text)
    if matched is None:
        raise FormatError(f"{text[:40]!r} is not a number format.", _REMEDY)
    bits, symmetric, grain, group, ending, _, activations = matched.groups(default="")
    granularity: Granularity = "group" if group else "tensor" if grain == "-tensor" else "row"
    scale_type = next(one for one, its_ending in _ENDINGS.items() if its_ending == ending)
    shape: tuple[Granularity, int, ScaleType] = granularity, int(group or 0), scale_type
    return Format("integer", int(bits), bool(symmetric), *shape, activations=int(activations or 0))


def _listed(choices: tuple[object, ...]) -> str:
    return ", ".join(map(str, choices))


FLOAT32 = Format("float", 32)
FLOAT16 = Format("float", 16)
BFLOAT16 = Format("float", 16, brain=True)
SIGN = Format("sign", 1)
