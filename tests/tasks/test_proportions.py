import numpy as np
import pytest
from scipy import stats

from qslm.tasks.proportions import tango, wilson

Z90, Z95 = 1.6448536269514722, 1.959963984540054


@pytest.mark.parametrize(
    ("b", "c", "n", "z", "limits"),
    [(28, 25, 618, Z90, (-0.0148, 0.0247)), (60, 20, 1000, Z95, (0.0231, 0.0584))],
)
def test_tango_gives_the_intervals_of_r(b, c, n, z, limits):
    """PropCIs::scoreci.mp(25, 28, 618, 0.90) and (20, 60, 1000, 0.95), which gives (second - first) / n."""
    assert tango(b, c, n, z) == pytest.approx(limits, abs=5.1e-5)


def test_tango_without_c_is_the_root_of_a_quadratic():
    """Where q is 0, the upper limit solves (b - n d)^2 = z^2 n d (1 - d)."""
    b, n = 1, 44
    roots = np.roots([n * n + n * Z95**2, -2 * b * n - n * Z95**2, b * b])
    assert tango(b, 0, n, Z95)[1] == pytest.approx(roots.max(), rel=1e-9)


@pytest.mark.parametrize("n", [2, 10, 872, 1500, 100_000])
def test_no_discordant_unit_is_not_no_uncertainty(n):
    bound = Z95**2 / (n + Z95**2)
    assert tango(0, 0, n, Z95) == (pytest.approx(-bound, rel=1e-6), pytest.approx(bound, rel=1e-6))


def test_tango_at_its_ends():
    assert tango(10, 0, 10, Z95) == (pytest.approx((10 - Z95**2) / (10 + Z95**2)), 1.0)
    assert tango(0, 10, 10, Z95) == (-1.0, pytest.approx(-(10 - Z95**2) / (10 + Z95**2)))


@pytest.mark.parametrize(("b", "c", "n"), [(3, 9, 40), (1, 0, 2), (0, 9, 10), (5, 5, 10), (700, 100, 1500)])
def test_tango_is_antisymmetric_and_holds_the_difference(b, c, n):
    low, high = tango(b, c, n, Z95)
    assert -1 <= low < (b - c) / n < high <= 1
    assert tango(c, b, n, Z95) == (pytest.approx(-high), pytest.approx(-low))


def test_tango_inverts_the_score_test():
    """At its limits the likelihood ratio's restricted share is found by plain search, not by the formula."""
    b, c, n = 12, 3, 60
    for limit in tango(b, c, n, Z95):
        q = np.linspace(max(0.0, -limit), (1 - limit) / 2, 2_000_001)[1:-1]
        likelihood = b * np.log(q + limit) + c * np.log(q) + (n - b - c) * np.log1p(-2 * q - limit)
        best = q[likelihood.argmax()]
        score = (b - c - n * limit) / np.sqrt(n * (2 * best + limit * (1 - limit)))
        assert abs(score) == pytest.approx(Z95, abs=1e-4)


@pytest.mark.parametrize(("lost", "gained"), [(0.02, 0.01), (0.05, 0.05), (0.08, 0.01), (0.004, 0.002)])
def test_tango_covers_the_truth(lost, gained):
    rng = np.random.default_rng(7)
    n, trials = 872, 4000
    counts, repeats = np.unique(
        rng.multinomial(n, [lost, gained, 1 - lost - gained], size=trials)[:, :2], axis=0, return_counts=True
    )
    limits = np.array([tango(b, c, n, Z95) for b, c in counts.tolist()])
    upper = np.array([tango(b, c, n, Z90)[1] for b, c in counts.tolist()])
    truth = lost - gained
    both = repeats[(limits[:, 0] <= truth) & (truth <= limits[:, 1])].sum() / trials
    one_sided = repeats[truth <= upper].sum() / trials
    assert 0.94 <= both <= 0.972
    assert 0.935 <= one_sided <= 0.975


def test_wilson_gives_scipys_interval():
    for right, n in [(0, 5), (5, 5), (3, 7), (747, 872)]:
        published = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
        assert wilson(right, n, Z95) == (pytest.approx(published.low, abs=1e-12), pytest.approx(published.high))
