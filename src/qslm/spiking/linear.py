"""The integrate-and-fire linear layer, whose threshold holds the scales (SpikeQuant, arXiv 2510.19498).

With weights w_ij = s_i c_ij (codes c, a scale s_i a row), inputs x_nj = s_n q_nj (spike counts q, a step s_n a token)
and the step s' of the next layer:

    V_ni     = sum_j c_ij q_nj                        the membrane potential, an exact integer
    theta_ni = s' / (s_i s_n)                         the threshold
    q'_ni    = round(V_ni / theta_ni)                 the spike count: the output requantized, without a dequantization

An integrate-and-fire neuron with soft reset, which subtracts theta for each spike, and an initial half threshold fires
just that count. The paper states that the scale is embedded in the threshold; all arithmetic here is derived:

- Thresholds and potentials are fixed-point numbers in int64 with FRACTION = 16 bits after the point, so that the result
  does not depend on who computes it: `fire` in closed form and `fire_events` event by event give the same bits.
- Ties go away from zero.
- A bias charges the membrane before the first spike: b_i / (s_i s_n).
- Groups along the inputs have scales of their own only as s_i 2^k, a shift of the codes: other ratios would give the
  partial sums other units, which no single threshold can hold.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from qslm.errors import SpikeError
from qslm.spiking.encoding import SpikeCounts, checked_step
from qslm.spiking.trains import Train

FRACTION = 16  # bits after the point of thresholds and potentials
_WIDEST = 60  # bits of a potential, an offset or a threshold in fixed point: the sum of all three fits into int64
_CHUNK = 1 << 18  # potentials worked on at once, 2 MB: fresh memory for more takes longer to map than to compute
_LONGEST = 1 << 16  # time steps after the last arrival that `fire_events` waits for silence


@dataclass(frozen=True, eq=False)
class SpikingLinear:
    """Weights (out, in) of a layer y = W x + b for inputs that are spike counts.

    codes: int8 (out, in); scales: s float32 (out,), above 0; shifts: k int8 (out, groups), 0 or more, or None for one
    scale a row; group_size: columns of a group, the last one may be ragged; bias: float32 (out,) or None.
    w_ij = s_i 2^k_ig c_ij, j in group g. Raises SpikeError when types, shapes or numbers are others, or when the row
    sum of |c_ij 2^k| reaches 2^31, beyond which potentials might not be exact.
    """

    codes: Tensor
    scales: Tensor
    shifts: Tensor | None = None
    group_size: int | None = None
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.codes.shape)
        if self.codes.dtype != torch.int8 or len(shape) != 2 or 0 in shape:
            _refuse("codes", f"they are {self.codes.dtype} {list(shape)}", "Give int8 (out, in), neither of them 0.")
        for name, numbers in (("scales", self.scales), ("bias", self.bias)):
            if numbers is None:
                continue
            if numbers.dtype != torch.float32 or numbers.shape != shape[:1] or not bool(torch.isfinite(numbers).all()):
                found = f"{numbers.dtype} {list(numbers.shape)}"
                _refuse(name, f"they are {found}, or not finite", f"Give finite float32 ({shape[0]},).")
        if not bool((self.scales > 0).all()):
            _refuse(
                "scales", f"the least is {float(self.scales.min()):g}", "Give scales above 0, 1 where a row is zeros."
            )
        self._check_groups(shape)
        if self.reach >= 1 << 31:
            _refuse("codes", f"a row sums up to {self.reach:,}", "Take smaller shifts, or split the layer.")

    def _check_groups(self, shape: tuple[int, ...]) -> None:
        if self.shifts is None and self.group_size is None:
            return
        if self.shifts is None or self.group_size is None or self.group_size < 1:
            _refuse("shifts", "a group size and shifts come together", "Give both or none.")
            return
        expected = (shape[0], -(-shape[1] // self.group_size))
        if self.shifts.dtype != torch.int8 or self.shifts.shape != expected:
            found = f"{self.shifts.dtype} {list(self.shifts.shape)}"
            _refuse("shifts", f"they are {found} for groups of {self.group_size}", f"Give int8 {list(expected)}.")
        if not bool(((self.shifts >= 0) & (self.shifts < 24)).all()):
            _refuse("shifts", "one is not within 0 to 23", "Give the scale of the finest group to the row.")

    @cached_property
    def synapses(self) -> Tensor:
        """The integer weights c_ij 2^k: (out, in) int8 where they fit, else int32."""
        if self.shifts is None or self.group_size is None:
            return self.codes
        shifts = self.shifts.int().repeat_interleave(self.group_size, 1)[:, : self.codes.shape[1]]
        wide = self.codes.int() * (1 << shifts)
        return wide.to(torch.int8) if bool((wide.to(torch.int8) == wide).all()) else wide

    @cached_property
    def reach(self) -> int:
        """The largest row sum of |c_ij 2^k|: |V| is at most this times the largest |q|."""
        return int(self.synapses.long().abs().sum(1).max())

    @cached_property
    def _synapses(self) -> dict[torch.dtype, Tensor]:
        """The synapses in other types, for products that have needed them."""
        return {self.synapses.dtype: self.synapses}

    def potentials(self, counts: SpikeCounts) -> Tensor:
        """V = sum_j w_ij q_nj, exactly: spike counts (tokens, in) -> int64 (tokens, out).

        Massive values go through a second product of the few columns that have any, and are shifted by e after it.
        Raises SpikeError when the width is another one.
        """
        self._check_width(counts)
        tokens, out = len(counts.counts), len(self.codes)
        potentials = torch.empty(tokens, out, dtype=torch.int64, device=self.codes.device)
        for part in _chunks(tokens, out):
            potentials[part] = self._potentials(counts.part(part))
        return potentials

    def outputs(self, counts: SpikeCounts) -> Tensor:
        """`values(potentials(counts), counts.step)`, float32 (tokens, out), without ever holding all potentials."""
        self._check_width(counts)
        tokens, out = len(counts.counts), len(self.codes)
        outputs = torch.empty(tokens, out, device=self.codes.device)
        for part in _chunks(tokens, out):
            some = counts.part(part)
            outputs[part] = self.values(self._potentials(some), some.step)
        return outputs

    def _check_width(self, counts: SpikeCounts) -> None:
        width, found = self.codes.shape[1], counts.counts.shape[1]
        if found != width:
            raise SpikeError(
                f"Spike counts of width {found} came to a layer of width {width}.", "Encode the input of this layer."
            )

    def _potentials(self, counts: SpikeCounts) -> Tensor:
        most = counts.encoding.most_salient
        if not counts.has_massive:
            return self._product(counts.counts, most)
        columns = counts.massive.any(0).nonzero().squeeze(1)
        coarse = counts.counts[:, columns] * counts.massive[:, columns]
        potentials = self._product(counts.counts * ~counts.massive, most)
        return potentials.add_(self._product(coarse, most, columns).mul_(1 << counts.exponents.long()))

    def _product(self, counts: Tensor, most: int, columns: Tensor | None = None) -> Tensor:
        """counts int8 (tokens, k) times the synapses of some columns, where |counts| <= most: int64 (tokens, out).

        The fastest product of which this bound proves that it is exact: int8 below 2^31, float32 below 2^24, where each
        partial sum is an integer that the type holds; and float64, below 2^38 by the check of the layer.
        """
        bound = most * self.reach
        if self.synapses.dtype == torch.int8 and bound < 1 << 31 and _suits_int8(counts, len(self.codes)):
            return torch._int_mm(counts.contiguous(), self._of_columns(torch.int8, columns).T).long()
        dtype = torch.float32 if bound < 1 << 24 else torch.float64
        return (counts.to(dtype) @ self._of_columns(dtype, columns).T).long()

    def _of_columns(self, dtype: torch.dtype, columns: Tensor | None) -> Tensor:
        if dtype not in self._synapses:
            self._synapses[dtype] = self.synapses.to(dtype)
        return self._synapses[dtype] if columns is None else self._synapses[dtype][:, columns]

    def values(self, potentials: Tensor, step: Tensor) -> Tensor:
        """The output as numbers, y = V s_n s_i + b: int64 (tokens, out), step float32 (tokens, 1) -> float32.

        This is the rescaling that the threshold saves; it is left where a float operation comes next. In float32, each
        step rounded: V, times s_n, times s_i, plus b_i.
        """
        scaled = potentials.float().mul_(step).mul_(self.scales)
        return scaled if self.bias is None else scaled.add_(self.bias)

    def offsets(self, step: Tensor) -> Tensor | None:
        """The bias as a charge of the membrane, in fixed point: int64 (tokens, out), or None.

        (b_i / s_i) / s_n in float64. Raises SpikeError as `thresholds` does.
        """
        if self.bias is None:
            return None
        exact = (self.bias.double() / self.scales.double()) / step.double()
        return fixed_point(exact, "The bias")


def thresholds(scales: Tensor, step: Tensor, next_step: Tensor | float) -> Tensor:
    """theta = s' / (s_i s_n) in fixed point with FRACTION bits, at least one unit: int64 (tokens, out).

    scales: s_i float32 (out,); step: s_n float32 (tokens, 1); next_step: s' as a number, the static one, or float32
    (tokens, 1), as found in a second pass by `normal_step` of `SpikingLinear.values`. It is one quotient a token and
    one a row, and their product, (s' / s_n) * (1 / s_i), in float64.
    Raises SpikeError when a threshold is not within 0 to 2^44, and for steps as `encoding.checked_step` does.
    """
    by_token = checked_step(next_step, step).double() / checked_step(step, step).double()
    exact = by_token * (1 / scales.double())
    if exact.numel() and not float(exact.min()) > 0:
        raise SpikeError(
            f"A threshold of {float(exact.min()):g} is not above 0.", "Give steps and scales that are above 0."
        )
    return fixed_point(exact, "The threshold").clamp_(min=1)


def fixed_point(numbers: Tensor, what: str) -> Tensor:
    """float64 numbers, any shape, times 2^FRACTION as int64, rounded half away from zero; the numbers are overwritten.

    Raises SpikeError, which begins with `what`, where one is NaN or not below 2^(60 - FRACTION).
    """
    limit = 2.0 ** (_WIDEST - FRACTION)
    if numbers.numel():
        low, high = torch.aminmax(numbers)
        if not (-limit < low and high < limit):
            raise SpikeError(
                f"{what} reaches from {float(low):g} to {float(high):g}, beyond the {limit:g} of fixed point.",
                "The steps of this layer and the next do not suit each other: calibrate them again.",
            )
    scaled = numbers.mul_(1 << FRACTION)
    whole = scaled.trunc()
    further = (scaled - whole).abs_() >= 0.5  # exact, as adding a half to what has no bit of a half is not
    return whole.add_(torch.copysign(further.double(), scaled)).long()


def fire(potentials: Tensor, thresholds: Tensor, most: int | None = None, offsets: Tensor | None = None) -> Tensor:
    """The spike counts in closed form, all int64 (tokens, out): V / theta rounded half away from zero.

        q' = sign(U) * floor((|U| + theta / 2) / theta),    U = V 2^FRACTION + offset

    An odd theta makes no ties, so half of it may be rounded down. most: where the counts are clipped, if at all.
    Raises SpikeError when a potential is too large for fixed point.
    """
    _check_potentials(potentials)
    counts = torch.empty_like(potentials)
    for part in _chunks(*potentials.shape):
        charged = potentials[part] << FRACTION
        if offsets is not None:
            charged += offsets[part]
        fired = charged.abs().add_(thresholds[part] >> 1).div_(thresholds[part], rounding_mode="trunc")
        torch.mul(fired if most is None else fired.clamp_(max=most), charged.sign_(), out=counts[part])
    return counts


@dataclass(frozen=True, eq=False)
class Fired:
    """What neurons fired: counts int64 (tokens, out), net of spikes that took others back; spikes: all of them;
    steps: time steps, those of the arriving windows and those until silence.
    """

    counts: Tensor
    spikes: int
    steps: int


def fire_events(
    synapses: Tensor,
    trains: Sequence[Train],
    thresholds: Tensor,
    most: int | None = None,
    offsets: Tensor | None = None,
) -> Fired:
    """The reference: the same counts as `fire`, event by event over time steps, while the spikes still arrive.

    synapses: integers (out, in). trains: the windows of `trains.Windows`, one after the other. thresholds and offsets
    (tokens, out), most: as for `fire`. At each time step every arriving spike adds or subtracts its column of weights,
    the code of the window integrates the sums, and a neuron fires at most once:

        +1 and U -= theta   where U >= theta / 2, in a tie only while its net count is 0 or more
        -1 and U += theta   where U <= -theta / 2, in a tie only while its net count is 0 or less

    theta / 2 is the initial half threshold. A neuron may fire on after the last arrival until all are silent, and
    takes a spike back that came too early; so the count does not depend on the order of arrivals, and a tie ends
    away from zero (derived). Raises SpikeError when a potential is too large for fixed point, or 65,536 steps after the
    last arrival some neuron still fires.
    """
    membrane = torch.zeros_like(thresholds) if offsets is None else offsets.clone()
    net, arrived = torch.zeros_like(thresholds), torch.zeros_like(thresholds)
    total = steps = 0
    for train in trains:
        currents = torch.stack([_arrivals(events, synapses) for events in train.spikes])
        for increment in train.code.increments(currents):
            charge = increment * (1 << train.exponents.long())
            arrived += charge
            _check_potentials(arrived)
            membrane += charge << FRACTION
            total += _fire_once(membrane, net, thresholds, most)
            steps += 1
    for _ in range(_LONGEST):
        spikes = _fire_once(membrane, net, thresholds, most)
        if not spikes:
            return Fired(net, total, steps)
        total += spikes
        steps += 1
    raise SpikeError(
        f"Neurons still fire {_LONGEST:,} time steps after the last spike arrived.",
        "Give the largest count, most; or take a larger next step.",
    )


def power_of_two_groups(scales: Tensor, most_shift: int = 4) -> tuple[Tensor, Tensor]:
    """Scales float32 (out, groups) as (row scales float32 (out,), shifts int8 (out, groups)): s_ig <= s_i 2^k_ig.

    Each group scale is rounded up to a power of two times that of its row, so no weight is clipped when it is rounded
    to the new grid, whose steps are less than twice as wide. The finest group gives the scale of the row, but none is
    more than 2^most_shift below the coarsest, so that 4-bit codes still fit into int8 after the shift (derived).
    Raises SpikeError when a scale is not above 0 and finite, or most_shift is not within 0 to 23.
    """
    if scales.dim() != 2 or 0 in scales.shape or not bool((torch.isfinite(scales) & (scales > 0)).all()):
        _refuse("scales", f"they are {list(scales.shape)}, or not above 0 and finite", "Give scales (out, groups).")
    if not 0 <= most_shift < 24:
        _refuse("shifts", f"the most is {most_shift}", "Give 0 to 23.")
    exact = scales.double()
    floor = exact.amax(1, keepdim=True) / (1 << most_shift)
    rows = torch.maximum(exact.amin(1, keepdim=True), floor).float()
    mantissa, power = torch.frexp(exact / rows.double())  # 2^(power - 1) <= ratio < 2^power
    shifts = (power - (mantissa == 0.5).to(power.dtype)).clamp_(0, most_shift)
    return rows.squeeze(1), shifts.to(torch.int8)


def _chunks(tokens: int, out: int) -> Iterator[slice]:
    """Slices of the tokens, each of about _CHUNK potentials."""
    step = max(1, _CHUNK // out)
    for start in range(0, tokens, step):
        yield slice(start, start + step)


def _arrivals(events: Tensor, synapses: Tensor) -> Tensor:
    """The current of one time step: spikes int8 (tokens, in) -> int64 (tokens, out), by additions alone."""
    current = torch.zeros(len(events), len(synapses), dtype=torch.int64)
    columns = synapses.T.long()
    for sign in (1, -1):
        token, column = (events == sign).nonzero(as_tuple=True)
        current.index_add_(0, token, columns[column], alpha=sign)
    return current


def _fire_once(membrane: Tensor, net: Tensor, thresholds: Tensor, most: int | None) -> int:
    """One time step of every neuron, in place: soft reset and net counts; how many fired."""
    twice = 2 * membrane
    up = (twice > thresholds) | ((twice == thresholds) & (net >= 0))
    down = (twice < -thresholds) | ((twice == -thresholds) & (net <= 0))
    if most is not None:
        up &= net < most
        down &= net > -most
    spikes = up.long() - down.long()
    net += spikes
    membrane -= spikes * thresholds
    return int(up.sum()) + int(down.sum())


def _suits_int8(counts: Tensor, out: int) -> bool:
    """Whether torch._int_mm gives exact sums of counts (tokens, k) for `out` neurons on this machine.

    It takes leading dimensions from strides, which are arbitrary where a size is 1, and then fails without a word
    (pytorch issue 195066).
    """
    return counts.device.type == "cpu" and min(*counts.shape, out) > 1 and _int8_is_exact()


@cache
def _int8_is_exact() -> bool:
    """Whether the int8 products of this processor are exact.

    Without VNNI instructions oneDNN adds pairs of products in 16 bits, which saturate (pytorch issue 136746). They do
    so for the extremes of int8 if for anything, so those are tried once.
    """
    extremes = torch.tensor([-128, 127], dtype=torch.int8).repeat(32)
    counts, weights = extremes[:, None].repeat(1, 64), extremes.repeat(64, 1)  # every sum is 64 times one product
    return torch.equal(torch._int_mm(counts, weights).long(), (counts.double() @ weights.double()).long())


def _check_potentials(potentials: Tensor) -> None:
    if potentials.numel():
        low, high = torch.aminmax(potentials)
        if max(-int(low), int(high)) >= 1 << (_WIDEST - FRACTION):
            raise SpikeError(
                f"Membrane potentials reach from {int(low):,} to {int(high):,}, beyond fixed point in int64.",
                "Take a larger step for the input of this layer.",
            )


def _refuse(name: str, problem: str, remedy: str) -> None:
    raise SpikeError(f"The {name} of a spiking layer are not usable: {problem}.", remedy)
