"""Spike trains: how signed counts travel over time steps, and what this costs.

A code writes |q| as spikes that carry the sign of q (bi-directional, as in SpikeLM), at most one a time step and input.
Each is decoded where it arrives: `increments` says what the current of each step adds to a membrane potential, so that
the sum over the window is sum_j w_j q_j exactly, without a multiplier:

| code        | spikes of q                        | steps for q <= m | the current I(t) adds         | number   |
| ----------- | ---------------------------------- | ---------------- | ----------------------------- | -------- |
| rate        | evenly over the window             | m                | I(t)                          | |q|      |
| thermometer | one in each of the first |q| steps | m                | I(t)                          | |q|      |
| bit planes  | one at step b where bit b is set   | bits of m        | 2^b I(t), by a shift          | popcount |
| first spike | at step T - |q| + 1: large, early  | m                | A(t) = A(t - 1) + I(t)        | 1, or 0  |

SpikeQuant (arXiv 2510.19498) names spike counts and time to first spike; the decoding by double integration,
of A and then of the potential, and the windows of their own for normal, salient and massive values are derived.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qslm.errors import SpikeError
from qslm.spiking.encoding import SpikeCounts


@dataclass(frozen=True)
class Cost:
    """What trains cost, summed over the tokens.

    spikes: of all inputs; accumulates: weights added to the membrane of one output neuron, one a spike; additions: what
    one output neuron adds besides, at each step of the window (first spike) or each shift (bit planes); steps: time
    steps. A layer with n outputs makes n * (accumulates + additions) additions.
    """

    spikes: int
    accumulates: int
    additions: int
    steps: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.spikes + other.spikes,
            self.accumulates + other.accumulates,
            self.additions + other.additions,
            self.steps + other.steps,
        )


class SpikeCode(ABC):
    """A way of writing signed integers as spikes over a window of time steps."""

    def steps(self, most: int) -> int:
        """The time steps that hold every |q| <= most; one or more."""
        return max(most, 1)

    def spikes(self, integers: Tensor, steps: int) -> Tensor:
        """Signed spikes -1, 0 or 1 of integers (tokens, width): int8 (steps, tokens, width).

        Raises SpikeError when an integer does not fit into the window.
        """
        self._check(integers, steps)
        signs = integers.sign().to(torch.int8)
        magnitudes = integers.abs()
        planes = [self._fires(magnitudes, t, steps) * signs for t in range(steps)]
        return torch.stack(planes)

    def inverse(self, spikes: Tensor) -> Tensor:
        """The integers that a train stands for: int8 (steps, tokens, width) -> int64 (tokens, width)."""
        return self.increments(spikes.long()).sum(0)

    def cost(self, integers: Tensor, steps: int) -> Cost:
        """What integers (tokens, width) cost in a window. Raises SpikeError when one does not fit into it."""
        self._check(integers, steps)
        spikes = int(self._count(integers.abs()).sum())
        time = steps * len(integers)
        return Cost(spikes, accumulates=spikes, additions=time if self.adds_each_step else 0, steps=time)

    adds_each_step = False

    def increments(self, currents: Tensor) -> Tensor:
        """What the currents (steps, ...) of a window add to the membrane potential at each step: the same shape."""
        return currents

    @abstractmethod
    def _fires(self, magnitudes: Tensor, t: int, steps: int) -> Tensor:
        """Where there is a spike at step t, from 0 on: bool, of the shape of the magnitudes."""

    def _count(self, magnitudes: Tensor) -> Tensor:
        """The spikes of every magnitude."""
        return magnitudes

    def _check(self, integers: Tensor, steps: int) -> None:
        most = int(integers.abs().max()) if integers.numel() else 0
        if self.steps(most) > steps:
            raise SpikeError(
                f"A count of {most:,} takes {self.steps(most):,} time steps as {type(self).__name__}, not {steps:,}.",
                "Give a longer window, or send large values in one of their own.",
            )


class Rate(SpikeCode):
    """|q| spikes of weight 1, spread evenly: the n-th at step ceil(n T / |q|)."""

    def _fires(self, magnitudes: Tensor, t: int, steps: int) -> Tensor:
        wide = magnitudes.long()
        return (wide * (t + 1)) // steps > (wide * t) // steps


class Thermometer(SpikeCode):
    """|q| spikes of weight 1 in the first |q| steps."""

    def _fires(self, magnitudes: Tensor, t: int, steps: int) -> Tensor:
        return magnitudes > t


class BitPlanes(SpikeCode):
    """The bits of |q|, the least significant first; the current of step b is shifted left by b."""

    adds_each_step = True

    def steps(self, most: int) -> int:
        """The bits of `most`; one or more."""
        return max(most.bit_length(), 1)

    def increments(self, currents: Tensor) -> Tensor:
        """2^b I(b)."""
        weights = 1 << torch.arange(len(currents), device=currents.device)
        return currents * weights.reshape(-1, *[1] * (currents.dim() - 1))

    def _fires(self, magnitudes: Tensor, t: int, steps: int) -> Tensor:
        return ((magnitudes >> t) & 1).bool()

    def _count(self, magnitudes: Tensor) -> Tensor:
        bits = self.steps(int(magnitudes.max())) if magnitudes.numel() else 1
        return sum(((magnitudes >> b) & 1 for b in range(bits)), torch.zeros_like(magnitudes))


class FirstSpike(SpikeCode):
    """One spike at step T - |q| + 1 of 1..T, so large ones come early; none for 0. Decoded by double integration."""

    adds_each_step = True

    def increments(self, currents: Tensor) -> Tensor:
        """A(t), the sum of the currents so far."""
        return currents.cumsum(0)

    def _fires(self, magnitudes: Tensor, t: int, steps: int) -> Tensor:
        return magnitudes == steps - t

    def _count(self, magnitudes: Tensor) -> Tensor:
        return magnitudes != 0


RATE, THERMOMETER, BIT_PLANES, FIRST_SPIKE = Rate(), Thermometer(), BitPlanes(), FirstSpike()


@dataclass(frozen=True, eq=False)
class Train:
    """Spikes int8 (steps, tokens, width) in a code; those of token n count 2^exponents[n]: int8 (tokens, 1)."""

    code: SpikeCode
    spikes: Tensor
    exponents: Tensor

    def integers(self) -> Tensor:
        """What it stands for, int64 (tokens, width)."""
        return self.code.inverse(self.spikes) * (1 << self.exponents.long())


@dataclass(frozen=True)
class Windows:
    """The codes of the three populations of `SpikeCounts`, each in a window of its own, one after the other.

    Normal values take the steps of Q, salient and massive ones each those of S; massive spikes count 2^e. A token
    without salient (massive) values spends no time on their window. By default normal values are first spikes, one each
    in a short window; salient ones, which are few, are bit planes: as first spikes they would need a step for every
    count up to S (derived).
    """

    normal: SpikeCode = FIRST_SPIKE
    salient: SpikeCode = BIT_PLANES
    massive: SpikeCode = BIT_PLANES

    def trains(self, counts: SpikeCounts) -> tuple[Train, ...]:
        """The windows that are needed, in their order; the sum of their integers is `counts.integers()`."""
        return tuple(
            Train(code, code.spikes(part, steps), counts.exponents * shifted)
            for code, part, steps, shifted in self._parts(counts)
        )

    def cost(self, counts: SpikeCounts) -> Cost:
        """What the windows cost together, summed over the tokens."""
        total = Cost(0, 0, 0, 0)
        for place, (code, part, steps, _) in enumerate(self._parts(counts)):
            total += code.cost(part if place == 0 else part[(part != 0).any(1)], steps)
        return total

    def _parts(self, counts: SpikeCounts) -> Iterator[tuple[SpikeCode, Tensor, int, bool]]:
        """Code, counts int32 (tokens, width) with zeros where they are of others, steps, and whether e applies."""
        encoding, integers = counts.encoding, counts.counts.int()
        longest = encoding.most_salient
        yield self.normal, integers.masked_fill(counts.salient, 0), self.normal.steps(encoding.most), False
        plain = counts.salient & ~counts.massive
        if bool(plain.any()):
            yield self.salient, integers.masked_fill(~plain, 0), self.salient.steps(longest), False
        if counts.has_massive:
            yield self.massive, integers.masked_fill(~counts.massive, 0), self.massive.steps(longest), True
