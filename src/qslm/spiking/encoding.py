"""Activations as signed spike counts on one step size a token, and how they are stored.

SpikeQuant (arXiv 2510.19498) re-encodes mixed-precision activations into spike counts; that they share one step, and
the three populations below, are derived. With Q = 2^(bits - 1) - 1, S = 2^(salient_bits - 1) - 1 and the step s:

    normal     q = clip(round(x / s), -Q, Q)
    salient    q = round(x / s), |q| <= S            a longer count on the same grid
    massive    q = round(x / (s 2^e)), |q| <= S      salient beyond S steps: a grid shifted by e, one e a token, the
                                                     least that holds the largest of them; such a count stands for q 2^e

So nothing salient is ever clipped, and the step is the only scale of a token. The quotient is that of float32, and
round() goes to even in a tie.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qslm.errors import FormatError, SpikeError
from qslm.formats.layout import packed_bytes
from qslm.formats.packing import pack, unpack, unused_bits
from qslm.formats.scales import powers_of_two
from qslm.spiking.saliency import THRESHOLD, activations, salient_ratio
from qslm.spiking.saliency import salient as find_salient

MOST_EXPONENT = 24  # 127 * 2^24 is the last that int32 holds
MASSIVE = -128  # in the list of salient counts, which reach from -127 to 127

_TINY = torch.finfo(torch.float32).tiny
_DAMAGED = "The spikes are damaged, or were stored with another encoding or width: store them again."


@dataclass(frozen=True)
class Encoding:
    """Bit widths of spike counts, sign included, and the share of the largest normal value that the grid reaches.

    4 and 8 bits give counts up to Q = 7 and S = 127; a clip of 0.9 is Atom's. Raises SpikeError when
    2 <= bits <= salient_bits <= 8 or 0 < clip <= 1 does not hold.
    """

    bits: int = 4
    salient_bits: int = 8
    clip: float = 1.0

    def __post_init__(self) -> None:
        whole = type(self.bits) is int and type(self.salient_bits) is int
        if not (whole and 2 <= self.bits <= self.salient_bits <= 8 and 0 < self.clip <= 1):
            raise SpikeError(
                f"No encoding has {self.bits} bits, {self.salient_bits} for salient values and a clip of {self.clip}.",
                "Give 2 <= bits <= salient_bits <= 8 and 0 < clip <= 1.",
            )

    @property
    def most(self) -> int:
        """Q: the largest count of a normal value."""
        return (1 << (self.bits - 1)) - 1

    @property
    def most_salient(self) -> int:
        """S: the largest count of a salient value."""
        return (1 << (self.salient_bits - 1)) - 1


@dataclass(frozen=True, eq=False)
class SpikeCounts:
    """Activations (tokens, width) as signed spike counts.

    counts: int8 (tokens, width); salient, massive: bool (tokens, width), every massive value is salient;
    exponents: e int8 (tokens, 1), above 0 where a token has massive values, whose counts stand for q 2^e steps;
    step: s float32 (tokens, 1).
    """

    encoding: Encoding
    counts: Tensor
    salient: Tensor
    massive: Tensor
    exponents: Tensor
    step: Tensor

    @property
    def has_massive(self) -> bool:
        """Whether any value is massive."""
        return bool(self.exponents.any())

    @property
    def ratio(self) -> float:
        """The share of salient values, massive ones included, 0 to 1."""
        return salient_ratio(self.salient)

    def part(self, tokens: slice | Tensor) -> "SpikeCounts":
        """The counts of some tokens: views of these by a slice, copies by a mask (tokens,)."""
        return replace(
            self,
            counts=self.counts[tokens],
            salient=self.salient[tokens],
            massive=self.massive[tokens],
            exponents=self.exponents[tokens],
            step=self.step[tokens],
        )

    def integers(self) -> Tensor:
        """The values in steps, int32 (tokens, width): q, or q 2^e where massive."""
        wide = self.counts.int()
        return wide * (1 << (self.exponents.int() * self.massive)) if self.has_massive else wide

    def values(self) -> Tensor:
        """The numbers that the counts stand for, float32 (tokens, width)."""
        return self.integers() * self.step


def normal_step(x: Tensor, salient: Tensor, encoding: Encoding) -> Tensor:
    """The step of every token, float32 (tokens, 1), of x (tokens, width): max |normal x| * clip / Q.

    Where no normal value is other than 0 it is max |x| / S, and 1 where the token is all zeros. It is at least
    max |x| / (S 2^24), so that the grid of the massive values reaches them (derived).
    """
    rows = activations(x)
    _check_mask(salient, rows)
    magnitudes = rows.abs()
    largest = magnitudes.amax(1, keepdim=True)
    normal = magnitudes.mul_(~salient).amax(1, keepdim=True)
    reach = largest / encoding.most_salient
    step = torch.where(normal > 0, normal * encoding.clip / encoding.most, reach)
    step = torch.maximum(step, reach / (1 << MOST_EXPONENT)).clamp_(min=_TINY)
    return step.masked_fill_(largest == 0, 1)


def static_step(
    samples: Iterable[Tensor], encoding: Encoding, threshold: float = THRESHOLD, quantile: float = 0.5
) -> float:
    """One step for all tokens, from calibration: a quantile of the steps of their own, the median by default (derived).

    samples: (tokens, width) each, such as outputs of the layer whose spike counts are wanted. Raises SpikeError as
    `saliency.salient` does, when there is no token that is not all zeros, or the quantile is not within 0 to 1.
    """
    steps = []
    for sample in samples:
        rows = activations(sample)
        rows = rows[(rows != 0).any(1)]
        steps.append(normal_step(rows, find_salient(rows, threshold), encoding).squeeze(1))
    found = torch.cat(steps).sort().values if steps else torch.empty(0)
    if not len(found) or not 0 <= quantile <= 1:
        raise SpikeError(
            f"No step can be calibrated as quantile {quantile} of {len(found)} tokens that are not all zeros.",
            "Give a quantile from 0 to 1, and activations of the running model.",
        )
    return float(found[round(quantile * (len(found) - 1))])


def encode(
    x: Tensor, encoding: Encoding, salient: Tensor | None = None, step: Tensor | float | None = None
) -> SpikeCounts:
    """The spike counts of activations (tokens, width).

    salient: bool (tokens, width), by default `saliency.salient(x)`. step: float or float32 (tokens, 1), by default
    `normal_step`; normal values beyond Q of these steps are clipped. Raises SpikeError as `saliency.activations` does,
    when x has other dimensions, the mask another shape or type, the step is not positive and finite, or a salient
    value is beyond S 2^24 steps.
    """
    _check_matrix(x)
    rows = activations(x)
    mask = find_salient(rows) if salient is None else salient
    _check_mask(mask, rows)
    steps = normal_step(rows, mask, encoding) if step is None else checked_step(step, rows)
    scaled = rows / steps
    counts = scaled.round().clamp_(-encoding.most, encoding.most).to(torch.int8)
    token, column = mask.nonzero(as_tuple=True)
    values = scaled[token, column]
    massive, exponents = _massive(values.abs(), token, steps, encoding)
    values[massive] *= powers_of_two(-exponents[token[massive], 0])
    counts[token, column] = values.round_().to(torch.int8)
    return SpikeCounts(encoding, counts, mask, _marked(mask, token, column, massive), exponents, steps)


def from_integers(integers: Tensor, step: Tensor | float, encoding: Encoding) -> SpikeCounts:
    """Spike counts that a layer fired as the input of the next: int64 (tokens, width), step as in `encode`.

    A value is salient where its count outgrows Q, and massive where it outgrows S; only massive counts are rounded, to
    multiples of 2^e, ties away from zero (derived: among counts no second search for salient values is needed).
    Raises SpikeError when a count is beyond S 2^24 or of another type, and for shape and step as `encode` does.
    """
    _check_matrix(integers)
    if integers.dtype != torch.int64:
        raise SpikeError(f"Spike counts of type {integers.dtype} cannot be an input.", "Give int64, as fire does.")
    steps = checked_step(step, integers)
    if integers.numel() and int(integers.min()) == torch.iinfo(torch.int64).min:
        raise SpikeError(f"A spike count of {int(integers.min())} has no magnitude in int64.", "Take a larger step.")
    mask = integers.abs() > encoding.most
    counts = integers.clamp(-encoding.most, encoding.most).to(torch.int8)
    token, column = mask.nonzero(as_tuple=True)
    values = integers[token, column]
    massive, exponents = _massive(values.abs().double(), token, steps, encoding)
    shift = exponents[token, 0].long() * massive
    counts[token, column] = (((values.abs() + ((1 << shift) >> 1)) >> shift) * values.sign()).to(torch.int8)
    return SpikeCounts(encoding, counts, mask, _marked(mask, token, column, massive), exponents, steps)


def stored(counts: SpikeCounts) -> dict[str, Tensor]:
    """The tensors that a file or a C program holds of spike counts; all numbers are little-endian.

    | name     | type and shape        | what it is                                                                    |
    | -------- | --------------------- | ----------------------------------------------------------------------------- |
    | codes    | uint8 (bytes,)        | tokens * width codes of b = `bits` bits, token by token without gaps: code i  |
    |          |                       | is bits [i b, (i + 1) b) of the stream, least significant first; unused bits  |
    |          |                       | of the last byte are 0. Code c > 0 is q = c - 2^(b - 1); code 0 is an escape: |
    |          |                       | the value is salient and stands in the list                                   |
    | rows     | int32 (tokens + 1,)   | entries [rows[n], rows[n + 1]) of the list are the salients of token n, in    |
    |          |                       | the order of their columns                                                    |
    | counts   | int8 (salients,)      | their counts q; -128 is an escape: the value is massive                       |
    | heights  | int32 (tokens + 1,)   | entries [heights[n], heights[n + 1]) of the last list are the massive values  |
    |          |                       | of token n, in the order of their columns                                     |
    | massive  | int8 (massive,)       | their counts q                                                                |
    | step     | float32 (tokens,)     | s: a value is q s, a massive one q s 2^e                                      |
    | exponent | int8 (tokens,)        | e, 0 to 24                                                                    |

    With 4 bits that is 4 + 8 (r + m) + 104 / width bits a value, r the ratio of salient and m of massive values: an
    escape says where they are.
    """
    dense = (counts.counts.short() + _escape(counts.encoding)).masked_fill_(counts.salient, 0)
    listed = counts.counts.masked_fill(counts.massive, MASSIVE)
    return {
        "codes": pack(dense.to(torch.uint8), counts.encoding.bits),
        "rows": _starts(counts.salient),
        "counts": listed[counts.salient].cpu(),
        "heights": _starts(counts.massive),
        "massive": counts.counts[counts.massive].cpu(),
        "step": counts.step[:, 0].cpu(),
        "exponent": counts.exponents[:, 0].cpu(),
    }


def stored_bytes(counts: SpikeCounts) -> int:
    """The bytes of the tensors of `stored`, without making them."""
    tokens, listed = len(counts.counts), int(counts.salient.sum()) + int(counts.massive.sum())
    return packed_bytes(counts.counts.numel(), counts.encoding.bits) + index_bytes(tokens) + listed + 5 * tokens


def index_bytes(tokens: int) -> int:
    """Those of them that say where the lists of a token begin."""
    return 2 * 4 * (tokens + 1)


def from_stored(tensors: Mapping[str, Tensor], encoding: Encoding, width: int) -> SpikeCounts:
    """The inverse of `stored`: the same counts, masks, exponents and steps again.

    Raises SpikeError when a tensor is missing, or they are not what `stored` writes for this encoding and width.
    """
    types = {
        "codes": torch.uint8, "rows": torch.int32, "counts": torch.int8, "heights": torch.int32, "massive": torch.int8,
        "step": torch.float32, "exponent": torch.int8,
    }  # fmt: skip
    for name, dtype in types.items():
        found = tensors.get(name)
        _refuse(found is None, name, "it is missing")
        assert found is not None
        _refuse(found.dtype != dtype or found.dim() != 1, name, f"it is {found.dtype} {list(found.shape)}")
    step, exponent, listed, high = (tensors[name] for name in ("step", "exponent", "counts", "massive"))
    tokens = len(step)
    _refuse(len(exponent) != tokens, "exponent", f"it has {len(exponent)} numbers for {tokens} tokens")
    _refuse(not bool((torch.isfinite(step) & (step > 0)).all()), "step", "a step is not positive and finite")
    try:
        dense = unpack(tensors["codes"], encoding.bits, tokens * width)
    except FormatError as error:
        raise SpikeError(f"The tensor 'codes': {error.problem}", _DAMAGED) from error
    _refuse(unused_bits(tensors["codes"], encoding.bits, tokens * width) != 0, "codes", "unused bits are not zero")
    counts = (dense.short() - _escape(encoding)).to(torch.int8).reshape(tokens, width)
    mask = (dense == 0).reshape(tokens, width)
    _refuse(len(listed) != int(mask.sum()), "counts", f"it has {len(listed)} numbers for {int(mask.sum())} escapes")
    _refuse(not torch.equal(tensors["rows"], _starts(mask)), "rows", "they are not where the tokens' escapes begin")
    massive = torch.zeros_like(mask)
    massive[mask] = listed == MASSIVE
    _refuse(len(high) != int(massive.sum()), "massive", f"it has {len(high)} numbers for {int(massive.sum())} escapes")
    _refuse(not torch.equal(tensors["heights"], _starts(massive)), "heights", "they are not where massive values begin")
    counts[mask], counts[massive] = listed, high
    _refuse(bool((counts[mask].short().abs() > encoding.most_salient).any()), "counts", "one is beyond the encoding")
    _refuse(bool(((exponent < 0) | (exponent > MOST_EXPONENT)).any()), "exponent", "one is not within 0 to 24")
    _refuse(
        not torch.equal(exponent > 0, massive.any(1)), "exponent", "it is not above 0 just where values are massive"
    )
    return SpikeCounts(encoding, counts, mask, massive, exponent[:, None], step[:, None])


def _starts(mask: Tensor) -> Tensor:
    """Where the entries of each token begin in a list of what a mask (tokens, width) marks: int32 (tokens + 1,)."""
    starts = torch.zeros(len(mask) + 1, dtype=torch.int32)
    starts[1:] = mask.sum(1).cumsum(0)
    return starts


def _massive(magnitudes: Tensor, token: Tensor, steps: Tensor, encoding: Encoding) -> tuple[Tensor, Tensor]:
    """Which of the salient magnitudes, in steps and with their tokens, are massive; and e of every token, (tokens, 1).

    e is the least with max |q| < (S + 1/2) 2^e, found from the exponents of the floats and therefore exact.
    """
    border = torch.tensor(encoding.most_salient + 0.5, dtype=magnitudes.dtype, device=magnitudes.device)
    largest = magnitudes.new_zeros(len(steps)).scatter_reduce_(0, token, magnitudes, "amax")
    if len(largest) and not float(largest.max()) < float(border) * (1 << MOST_EXPONENT):
        raise SpikeError(
            f"A salient value is {float(largest.max()):,.0f} steps; spike counts hold {encoding.most_salient} * 2^24.",
            "Take a larger step, or let every token have its own.",
        )
    (mantissa, power), (border_mantissa, border_power) = torch.frexp(largest), torch.frexp(border)
    exponents = (power - border_power + (mantissa >= border_mantissa)).clamp_(min=0).to(torch.int8)
    return magnitudes >= border, exponents[:, None]


def _marked(mask: Tensor, token: Tensor, column: Tensor, massive: Tensor) -> Tensor:
    marked = torch.zeros_like(mask)
    marked[token, column] = massive
    return marked


def checked_step(step: Tensor | float, rows: Tensor) -> Tensor:
    """A step, one number or (tokens, 1), as float32 (tokens, 1) for rows (tokens, ...).

    Raises SpikeError when it has another shape, or is not finite and above the least normal float32 number.
    """
    given = torch.as_tensor(step, dtype=torch.float32, device=rows.device)
    if given.dim() and given.shape != (len(rows), 1):
        raise SpikeError(
            f"The step has shape {tuple(given.shape)}, not ({len(rows)}, 1).", "Give one number, or one a token."
        )
    if not bool((torch.isfinite(given) & (given >= _TINY)).all()):
        raise SpikeError(
            f"A step of {float(given.min()):g} is not a positive float32 number from {_TINY:g} on.",
            "Calibrate the step on activations that are not all zeros.",
        )
    return given.expand(len(rows), 1).contiguous()


def _check_matrix(x: Tensor) -> None:
    if x.dim() != 2:
        raise SpikeError(
            f"Spike counts are made of (tokens, width), not of shape {tuple(x.shape)}.",
            "Flatten the leading dimensions.",
        )


def _check_mask(mask: Tensor, rows: Tensor) -> None:
    if mask.shape != rows.shape or mask.dtype != torch.bool:
        raise SpikeError(
            f"The mask of salient values is {mask.dtype} {tuple(mask.shape)}, not bool {tuple(rows.shape)}.",
            "Make it from the same activations.",
        )


def _escape(encoding: Encoding) -> int:
    """2^(bits - 1): what is added to a count to make its code; code 0, below that of -Q, is free for the escape."""
    return encoding.most + 1


def _refuse(wrong: bool, name: str, problem: str) -> None:
    if wrong:
        raise SpikeError(f"The tensor {name!r}: {problem}.", _DAMAGED)
