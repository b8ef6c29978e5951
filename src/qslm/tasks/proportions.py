"""Score intervals for shares: one share, and the difference of two on the same units."""

import math

from scipy import optimize

NEAREST = 1e-9  # to the observed difference, where its variance may be zero


def wilson(right: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share of `right` in `n`; `z` is the normal quantile.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    """
    share = right / n
    centre = share + z * z / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    scale = 1 + z * z / n
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)


def tango(b: float, c: float, n: int, z: float) -> tuple[float, float]:
    """Tango's score interval (Statistics in Medicine 17, 1998, 891-908) of the paired difference (b - c)/n.

    Of `n` units, `b` have the property only in the first measurement and `c` only in the second. The limits
    are the differences d with |b - c - n d| = z sqrt(n (2 q(d) + d (1 - d))), where q is the maximum
    likelihood estimate of c/n under the difference d. Without any discordant unit they are -+ z^2/(n + z^2):
    nothing seen is not nothing.
    """
    return -_upper_limit(c, b, n, z), _upper_limit(b, c, n, z)


def _upper_limit(b: float, c: float, n: int, z: float) -> float:
    if b == n:
        return 1.0

    def excess(difference: float) -> float:
        variance = 2 * _restricted_share(b, c, n, difference) + difference * (1 - difference)
        return b - c - n * difference + z * math.sqrt(n * max(variance, 0.0))

    return float(optimize.brentq(excess, (b - c) / n + NEAREST, 1.0, xtol=1e-12))


def _restricted_share(b: float, c: float, n: int, difference: float) -> float:
    """q(d): the positive root of 2n q^2 + (-b - c + (2n - b + c) d) q - c d (1 - d) = 0."""
    linear = -b - c + (2 * n - b + c) * difference
    constant = -c * difference * (1 - difference)
    return (math.sqrt(max(linear * linear - 8 * n * constant, 0.0)) - linear) / (4 * n)
