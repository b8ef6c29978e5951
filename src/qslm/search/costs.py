"""What a search may expect of every format at every site, before anything is measured."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf, isfinite

from qslm.allocation import Allocation
from qslm.errors import StudyError
from qslm.formats import Format


@dataclass(frozen=True)
class Costs:
    """The expected loss of each (site name, format) alone, not negative; in nats per token or sentence.

    What is not listed is expected to lose nothing. `quantizers` names the method of each where the options have
    several. An expectation orders and proposes, it never decides. Raises
    StudyError on a cost that is negative or not finite.
    """

    values: Mapping[tuple[str, Format], float]
    quantizers: Mapping[tuple[str, Format], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for (site, fmt), cost in self.values.items():
            if not 0 <= cost < inf:
                raise StudyError(f"A loss of {cost} is expected of {site} at {fmt}.", "Give finite losses, 0 or more.")

    def of(self, site: str, format: Format) -> float:
        """The expected loss of one site in one format."""
        return self.values.get((site, format), 0.0)

    def quantizer(self, site: str, format: Format) -> str | None:
        """The method that a site is rounded by in a format; None where there is no choice."""
        return self.quantizers.get((site, format))

    def total(self, allocation: Allocation) -> float:
        """The expected loss of an allocation: the sum over its sites."""
        return sum(self.of(site.name, format) for site, format in allocation.items())

    def scaled(self, factors: Mapping[str, float]) -> "Costs":
        """These costs with those of each site multiplied by its factor, 1 where it has none."""
        values = {(site, fmt): cost * factors.get(site, 1.0) for (site, fmt), cost in self.values.items()}
        return replace(self, values=values)

    def corrected(self, measured: Mapping[tuple[str, Format], tuple[float, float]]) -> "Costs":
        """These costs, corrected by the measured loss of a site alone in a format and its standard error.

        Derived: a cost is trusted to within its own size, as if it were its standard error; the two are averaged by
        their precisions. A cost of nothing stays, and so does one whose measurement says nothing or is not finite.
        """

        def mean(cost: float, loss: float, error: float) -> float:
            trust = cost * cost / (cost * cost + error * error) if cost > 0 and isfinite(error) else 0.0
            return max(0.0, (1 - trust) * cost + trust * loss) if trust and isfinite(loss) else cost

        values = {key: mean(cost, *measured.get(key, (cost, inf))) for key, cost in self.values.items()}
        return replace(self, values=values)

    @classmethod
    def by_bits(cls, sites: Iterable[tuple[str, int]], formats: Iterable[Format]) -> "Costs":
        """What is expected where nothing was estimated: 4^-bits times the share of the site's numbers."""
        sites, formats = list(sites), list(formats)
        numel = max(sum(count for _, count in sites), 1)
        return cls({(name, fmt): count / numel * 4.0**-fmt.bits for name, count in sites for fmt in formats})
