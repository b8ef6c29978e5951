"""Folding: the scales of columns move into what makes their inputs, so that a file holds the same network without them.

Codes and zero points stay as they are. All scales are powers of two, so that no number is rounded: the folded network
gives the bits of the one whose weights are W_hat = Q(W diag(s)) diag(1/s).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from qslm.anatomy import Anatomy
from qslm.errors import AllocationError
from qslm.formats.quantized import QuantizedTensor
from qslm.formats.scales import powers_of_two, scale_problem
from qslm.models.folds import Fold
from qslm.quantizers.apply import RoundedSites

_ANOTHER = "Round it by another quantizer: gptq, clip."


def folds_of(model: nn.Module, anatomy: Anatomy) -> tuple[Fold, ...]:
    """Where a network can take scales up, as its method `folds()` says; nothing where it has none.

    A fold of a tensor with a second key, which something else reads too, is left out. Raises AllocationError where
    what makes the channels and what reads them differ in how many there are.
    """
    own = {site.name for site in anatomy.sites if not site.aliases}
    told = getattr(model, "folds", None)
    found = [one for one in (told() if callable(told) else ()) if own.issuperset((*one.producers, *one.consumers))]
    for one in found:
        made = {name: anatomy[name].shape[0] for name in one.producers}
        read = {name: anatomy[name].shape[-1] for name in one.consumers}
        if len({*made.values(), *read.values()}) != 1:
            counts = ", ".join(f"{name} {count}" for name, count in (made | read).items())
            raise AllocationError(
                f"What makes the channels of a fold and what reads them differ in their number: {counts}.",
                f"Correct the method folds() of {type(model).__name__}.",
            )
    return tuple(found)


def fold(sites: RoundedSites, folds: Iterable[Fold]) -> "FoldedSites":
    """The sites of the same network, none of whose columns are scaled; one is rounded when it is asked for.

    The columns of a consumer in a float format are multiplied by what the rounded ones were. Raises AllocationError
    where a consumer was rounded to integers without the scales that others have, and, when the site is asked for,
    where the format of one cannot take a scale up to the bit.
    """
    rows: dict[str, Tensor] = {}
    columns: dict[str, Tensor] = {}
    for one in folds:
        exponents = _shared(sites, one)
        if exponents is not None:
            rows |= dict.fromkeys(one.producers, -(exponents // one.degree))
            columns |= dict.fromkeys(one.consumers, exponents)
    return FoldedSites(sites, rows, columns)


@dataclass(frozen=True, eq=False)
class FoldedSites(Mapping[str, QuantizedTensor]):
    """Rounded sites by name; `rows` of some are multiplied by 2^k, k (out,), `columns` by 2^k, k (in,), both int8.

    A vector has rows of one number. Columns that were scaled when they were rounded are as `columns` says.
    """

    sites: Mapping[str, QuantizedTensor]
    rows: Mapping[str, Tensor]
    columns: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> QuantizedTensor:
        tensor = self.sites[name]
        if name in self.columns:
            tensor = _with_columns(tensor, self.columns[name], name)
        return _with_rows(tensor, self.rows[name], name) if name in self.rows else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)


def _shared(sites: RoundedSites, one: Fold) -> Tensor | None:
    """The exponents of the consumers of a fold; None where the columns of none are scaled."""
    rounded = [name for name in one.consumers if sites.allocation[name].is_integer]
    found = {name: sites.exponents(name) for name in rounded}
    scaled = {name: exponents for name, exponents in found.items() if exponents is not None}
    if not scaled:
        return None
    first, exponents = next(iter(scaled.items()))
    for name in rounded:
        if name not in scaled or not torch.equal(scaled[name], exponents):
            raise AllocationError(
                f"The columns of {first} are scaled and those of {name}, which reads the same channels, are not alike.",
                "Round both by awq or awq_gptq, or neither.",
            )
    return exponents


def _with_columns(tensor: QuantizedTensor, exponents: Tensor, name: str) -> QuantizedTensor:
    if tensor.values is None:
        return replace(tensor, exponents=None)
    return replace(tensor, values=_multiplied(tensor.values, powers_of_two(exponents), tensor, name))


def _with_rows(tensor: QuantizedTensor, exponents: Tensor, name: str) -> QuantizedTensor:
    factors = powers_of_two(exponents)
    if tensor.values is not None:
        beside = factors.reshape(-1, *[1] * (tensor.values.dim() - 1))
        return replace(tensor, values=_multiplied(tensor.values, beside, tensor, name))
    if tensor.scales is None or tensor.format.granularity == "tensor" or tensor.step is not None:
        problem = f"{name} is {tensor.format}, and the scales of its outputs need a scale of each row."
        raise AllocationError(problem, "Store it with one scale a row or group, or round what reads it by gptq.")
    scales = _multiplied(tensor.scales, factors[:, None], tensor, name)
    if problem := scale_problem(scales, tensor.format):
        raise AllocationError(f"{name}: with the scales of its outputs {problem}.", _ANOTHER)
    return replace(tensor, scales=scales)


def _multiplied(numbers: Tensor, factors: Tensor, tensor: QuantizedTensor, name: str) -> Tensor:
    """Numbers times powers of two in their own type; raises AllocationError where one does not come out to the bit."""
    exact = numbers.double() * factors.double()
    found = exact.to(numbers.dtype)
    if not torch.equal(found.double(), exact):
        count = int((found.double() != exact).sum())
        raise AllocationError(f"{name}: {count} numbers times a power of two are no {tensor.format}.", _ANOTHER)
    return found
