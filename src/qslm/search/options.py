"""What a search may be told beside its budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal

from qslm.allocation import Allocation, readable
from qslm.anatomy import Anatomy, Site
from qslm.budget import Budget, check_possible
from qslm.errors import AllocationError, BudgetError
from qslm.formats import ACTIVATIONS, FLOAT32, Format, data_bytes, entry_bytes, stored_tensors

Order = Literal["sensitivity", "network"]

PRECISIONS = (16, 14, 12, 10, 8, 6, 5, 4, 3, 2)
TEMPLATE = Format("integer", 8)
# The names of `qslm.quantizers`, which PyTorch takes a second to load for.
SCALING = ("awq", "awq_gptq")  # those whose scales of columns end in the scales of other matrices' rows
QUANTIZERS = ("clip", "minmax", "hqq", "gptq", *SCALING)
DESCENDING = ("tiered", "uniform")  # those that lower weights and activations in turns
NAMES = ("knapsack", "tiered", "literal", "uniform", "greedy", "random", "tpe", "nsga2")
EVALUATIONS = 200  # what a strategy without an end of its own asks for where no limit is given
SEEDS = 2**32


@dataclass(frozen=True)
class Options:
    """How a search goes.

    precisions: the bit widths to try. templates: how integers are stored (granularity, symmetry, scale type), in one
    way or several; a precision replaces their bits. activations: bits of the spike counts that spiking layers read,
    several for the strategies that lower them too (DESCENDING); none where they read numbers. vectors: the float format
    of one-dimensional parameters. signs: whether a binarized embedding is stored as signs. quantizers: how weights are
    rounded, of QUANTIZERS; of several the knapsack takes for every site and format the one that is expected to lose
    least, the other strategies the first.
    strategy: one of NAMES. order: of the blocks in the tiered search, by the loss of each alone ("sensitivity") or as
    they stand ("network"). seed: of the strategies that draw. max_evaluations: random, tpe and nsga2 have no other end
    and take EVALUATIONS where it is None. max_seconds: no evaluation begins later. early: whether an evaluation may end
    once its decision is foretold, and a coarser allocation than one that broke is not measured. reconstruct: of so many
    finalists at most the rounding is learned as a whole (`qslm.evaluation.reconstruction`), beside max_evaluations.
    Raises AllocationError or FormatError on what makes no search.
    """

    precisions: Sequence[int] = PRECISIONS
    templates: tuple[Format, ...] = (TEMPLATE,)
    vectors: Format = FLOAT32
    signs: bool = True
    quantizers: tuple[str, ...] = ("clip",)
    order: Order = "sensitivity"
    strategy: str = "knapsack"
    seed: int = 0
    max_evaluations: int | None = None
    max_seconds: float | None = None
    early: bool = True
    reconstruct: int = 0
    activations: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.precisions:
            raise AllocationError("The list of precisions is empty.", "Give bit widths, such as 8 6 4.")
        if not self.quantizers:
            raise AllocationError("The list of quantizers is empty.", "Give one, such as clip.")
        if not self.templates:
            raise AllocationError(
                "There is no template of integer formats.", "Give one such as int4-row (--group row)."
            )
        for template in self.templates:
            if template.kind != "integer":
                raise AllocationError(f"{template} is no integer format.", "Give one such as int4-row or int4-g64.")
        if self.vectors.kind != "float":
            raise AllocationError(f"{self.vectors} is no float format.", "Vectors are float32, float16 or bfloat16.")
        if self.order not in ("sensitivity", "network"):
            raise AllocationError(f"There is no order {self.order!r}.", "Choose sensitivity or network.")
        for name, most in (("evaluations", self.max_evaluations), ("seconds", self.max_seconds)):
            if most is not None and not 0 < most < inf:
                raise AllocationError(
                    f"At most {most:g} {name} leave nothing to search.", "Give 1 or more, or leave it out."
                )
        if self.reconstruct < 0:
            raise AllocationError(f"{self.reconstruct} finalists are none.", "Give 0 or more.")
        if not 0 <= self.seed < SEEDS:
            raise AllocationError(f"{self.seed} is no seed.", f"Give a whole number from 0 to {SEEDS - 1}.")
        for name in self.quantizers:
            if self.quantizers.count(name) > 1:
                raise AllocationError(f"The quantizer {name} is named twice.", "Name each once.")
            if name not in QUANTIZERS:
                problem = f"There is no quantizer {name[:64]!r}."
                raise AllocationError(problem, f"Choose one of: {', '.join(QUANTIZERS)}.")
        self._check_scaling()
        check_name(self.strategy)
        self._check_activations()

    def _check_activations(self) -> None:
        """Refuse what has no integer form, and what no strategy or quantizer knows to do with spike counts."""
        if not self.activations:
            return
        if list(self.activations) != sorted(set(self.activations) & set(ACTIVATIONS), reverse=True):
            raise AllocationError(
                f"Activations of {' '.join(map(str, self.activations))} bits are no descending list of 8 to 2.",
                "Give such as 8 6 5 4.",
            )
        if len(self.activations) > 1 and self.strategy not in DESCENDING:
            raise AllocationError(
                f"The strategy {self.strategy} does not choose the bits of activations.",
                f"Give one number of bits, or a strategy that lowers them: {', '.join(DESCENDING)}.",
            )
        if self.reconstruct or any(name in SCALING for name in self.quantizers):
            raise AllocationError(
                "Layers that read spike counts have no rounding learned as a whole, and no scaled columns.",
                "Search without --reconstruct, with the quantizers clip, minmax, hqq or gptq.",
            )
        for template in self.templates:
            for bits in self.precisions:
                replace(template, bits=bits, activations=self.activations[0])

    def _check_scaling(self) -> None:
        """Refuse quantizers that scale columns where a fold would need scales of single rows that there are not."""
        scaling = [name for name in self.quantizers if name in SCALING]
        if scaling and any(template.granularity == "tensor" for template in self.templates):
            raise AllocationError(
                f"{scaling[0]} changes scales of rows, and a matrix with one scale has none.",
                "Give one scale a row or group (--group), or another quantizer: gptq, clip.",
            )
        if self.quantizers[0] in SCALING and any(template.has_step for template in self.templates):
            raise AllocationError(
                f"{scaling[0]} changes scales of rows, and scales in 8 bits share one step.",
                "Name another quantizer first (gptq, clip), or give scales of 16 bits (--group).",
            )

    @property
    def formats(self) -> tuple[Format, ...]:
        """Every template at every precision, from the most bits a weight to the fewest, with the most of activations.

        Where there are several bits of activations, `lowered` gives the others.
        """
        most = self.activations[0] if self.activations else 0
        found = {
            replace(template, bits=bits, activations=most) for template in self.templates for bits in self.precisions
        }
        return tuple(sorted(found, key=_order, reverse=True))

    def uniform(self, anatomy: Anatomy, fmt: Format) -> Allocation:
        """Every matrix in `fmt`, vectors and signs as these options say."""
        return Allocation.uniform(anatomy, fmt, vectors=self.vectors, signs=self.signs, quantizer=self.quantizers[0])

    def matrices(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """The sites that a precision is given to: the matrices, without what is kept as signs."""
        return tuple(site for site in anatomy.sites if not site.is_vector and not (self.signs and site.binarized))

    def mixed(
        self, anatomy: Anatomy, formats: Mapping[str, Format], quantizers: Mapping[str, str | None] | None = None
    ) -> Allocation:
        """Each of `matrices` in the format of its name, vectors and signs as these options say.

        `quantizers` are those of sites that have another one than the first.
        """
        rest = self.uniform(anatomy, FLOAT32)
        first = self.quantizers[0]
        names = tuple((quantizers or {}).get(site.name) or first for site in anatomy.sites)
        chosen = tuple(readable(site, formats.get(site.name, fmt)) for site, fmt in rest.items())
        return Allocation(anatomy, chosen, first if set(names) == {first} else names)

    def smallest(self, anatomy: Anatomy) -> Allocation:
        """The smallest allocation that the search can reach: every matrix at the lowest precision.

        Which of several templates is smallest depends on the matrix: 8-bit scales save nothing where there are few.
        """
        upwards = self.formats[::-1]

        def smallest(site: Site) -> Format:
            return min(upwards, key=lambda fmt: _file_bytes(site, fmt))

        return self.mixed(anatomy, {site.name: smallest(site) for site in self.matrices(anatomy)})

    def check_possible(self, anatomy: Anatomy, budget: Budget, checkpoint_bytes: int) -> None:
        """Raise BudgetError, naming the nearest possible budget, when no allocation is small enough.

        Small enough is smaller than the checkpoint's file, too.
        """
        smallest = self.smallest(anatomy).footprint().file
        check_possible(budget.max_bytes, smallest, anatomy.float32_bytes)
        if smallest >= checkpoint_bytes:
            raise BudgetError(
                f"The checkpoint's file has {checkpoint_bytes:,} bytes, and the smallest model file {smallest:,}.",
                "Give lower precisions (--precisions), or the checkpoint before it was packed.",
            )

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON values."""
        texts = {
            "templates": [str(template) for template in self.templates],
            "vectors": str(self.vectors),
            "precisions": list(self.precisions),
            "quantizers": list(self.quantizers),
            "activations": list(self.activations),
        }
        return {**vars(self), **texts}


def _order(fmt: Format) -> tuple[float, int, str]:
    """By bits a weight; in endless rows those of a scale for each row do not count, so these come second."""
    return fmt.bits_per_weight, fmt.scale_bits, str(fmt)


def _file_bytes(site: Site, fmt: Format) -> int:
    return sum(data_bytes(tensor) + entry_bytes(tensor) for tensor in stored_tensors(fmt, site.shape, site.name))


def check_name(strategy: str) -> None:
    """Raise AllocationError, listing NAMES, when there is no such strategy."""
    if strategy not in NAMES:
        raise AllocationError(f"There is no strategy {strategy!r}.", f"Choose one of: {', '.join(NAMES)}.")


DEFAULT_OPTIONS = Options()
