"""Hadamard matrices: orthogonal, of entries +1 and -1 alone, so that a rotation by one is additions.

Orders are a base times a power of two (Sylvester); a base is 1 or what Paley's two constructions give for a prime
(1933): q + 1 for a prime q = 3 mod 4, 2 (q + 1) for a prime q = 1 mod 4. Both and their use on language models:
QuaRot, Ashkboos et al., NeurIPS 2024.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import isqrt

import torch
from torch import Tensor, nn

LARGEST_BASE = 256  # an online rotation multiplies by the base's matrix, so it stays small


@dataclass(frozen=True)
class Rotation:
    """An orthogonal matrix (width, width): `blocks` Hadamard matrices of order `base` 2^k on its diagonal."""

    width: int
    base: int
    doublings: int

    @classmethod
    def of(cls, width: int) -> "Rotation":
        """The one with the fewest blocks and, of these, the smallest base: one block where its order is known."""
        if width < 1:
            raise ValueError(f"{width} columns cannot be rotated.")
        found = []
        for order in (one for one in range(1, width + 1) if width % one == 0):
            for doublings in range(order.bit_length()):
                base = order >> doublings
                if base << doublings == order and base <= LARGEST_BASE and _paley_prime(base) is not None:
                    found.append(cls(width, base, doublings))
        return min(found, key=lambda one: (one.blocks, one.base))

    @property
    def order(self) -> int:
        """Of each Hadamard matrix on the diagonal."""
        return self.base << self.doublings

    @property
    def blocks(self) -> int:
        """How many there are."""
        return self.width // self.order

    @property
    def additions(self) -> int:
        """Of one token, where it is applied online: a butterfly of every doubling, and the base's dense matrix."""
        return self.width * (self.doublings + self.base - 1)

    def __str__(self) -> str:
        return f"hadamard {self.order}" + (f", {self.blocks} blocks" if self.blocks > 1 else "")

    def matrix(self) -> Tensor:
        """Float32 (width, width)."""
        return self.apply(torch.eye(self.width))

    def apply(self, x: Tensor) -> Tensor:
        """x @ R over the last axis (..., width), in the type of x."""
        return self._turned(x, _paley(self.base))

    def undo(self, x: Tensor) -> Tensor:
        """x @ R^T over the last axis (..., width)."""
        return self._turned(x, _paley(self.base).T)

    def _turned(self, x: Tensor, base: Tensor) -> Tensor:
        parts = x.reshape(*x.shape[:-1], self.blocks, self.base, 1 << self.doublings)
        turned = torch.einsum("...bn,bc,nm->...cm", parts, base.to(x), _sylvester(self.doublings).to(x))
        return turned.reshape(x.shape) / self.order**0.5


@lru_cache(maxsize=16)
def _sylvester(doublings: int) -> Tensor:
    """The Hadamard matrix of order 2^doublings, not normalized."""
    found = torch.ones(1, 1)
    for _ in range(doublings):
        found = torch.cat((torch.cat((found, found), 1), torch.cat((found, -found), 1)))
    return found


def _paley_prime(order: int) -> int | None:
    """The prime q of Paley's construction of a base order, 0 for order 1; None where there is none."""
    if order == 1:
        return 0
    for prime, residue in ((order - 1, 3), (order // 2 - 1, 1)):
        if order % 4 == 0 and prime % 4 == residue and all(prime % one for one in range(2, isqrt(prime) + 1)):
            return prime
    return None


@lru_cache(maxsize=16)
def _paley(order: int) -> Tensor:
    """The Hadamard matrix of a base order by Paley's first or second construction, not normalized."""
    prime = _paley_prime(order)
    if not prime:
        return torch.ones(1, 1)
    squares = {one * one % prime for one in range(1, prime)}
    characters = torch.tensor([0] + [1 if one in squares else -1 for one in range(1, prime)], dtype=torch.float32)
    places = torch.arange(prime)
    core = torch.ones(prime + 1, prime + 1)
    core[0, 0] = 0
    core[1:, 1:] = characters[(places[:, None] - places) % prime]
    identity = torch.eye(prime + 1)
    if prime % 4 == 3:
        core[1:, 0] = -1
        return core + identity
    return torch.cat(
        (torch.cat((core + identity, core - identity), 1), torch.cat((core - identity, -core - identity), 1))
    )


class Turn(nn.Module):
    """Applies a rotation online, to x (..., width)."""

    def __init__(self, rotation: Rotation) -> None:
        super().__init__()
        self.rotation = rotation

    def forward(self, x: Tensor) -> Tensor:
        """x R."""
        return self.rotation.apply(x)
