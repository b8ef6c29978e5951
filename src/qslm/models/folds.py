"""Where a network can take up a scale of its channels without computing anything else."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fold:
    """Channels between what makes them and the matrices that read them, all by state-dict key.

    Channel j comes from row j of every matrix and number j of every vector in `producers`, and column j of every
    matrix in `consumers` multiplies it, nothing else does. Producers times c > 0 make channels times c^degree; what
    stands between has to do so exactly for a power of two. So with s = 2^k, k a multiple of the degree,

    producers diag(2^(-k / degree)),  consumers diag(2^k)

    is the same network, to the bit. A network says where its own are by a method `folds()`.
    """

    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    degree: int = 1
