"""Rounding one site of a network into any format."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, TypeAlias

import torch

from qslm.allocation import Allocation
from qslm.errors import AllocationError, FormatError
from qslm.formats import Format, matrix_shape
from qslm.formats.dtypes import value_dtype
from qslm.formats.quantized import QuantizedTensor
from qslm.quantizers import awq, awq_gptq, clip, gptq, hqq, minmax
from qslm.quantizers.statistics import InputStatistics


class Quantizer(Protocol):
    """Rounds a finite float32 weight (out, in) into an integer format."""

    def __call__(self, weight: torch.Tensor, format: Format, *, name: str = "weight") -> QuantizedTensor:
        """`name` is for errors."""
        ...


class CalibratedQuantizer(Protocol):
    """Rounds a weight by what its matrix sees on calibration text."""

    def __call__(
        self, weight: torch.Tensor, format: Format, *, name: str = "weight", inputs: InputStatistics
    ) -> QuantizedTensor:
        """`name` is for errors."""
        ...


Inputs: TypeAlias = Mapping[str, InputStatistics]  # by the name of the site
Learned: TypeAlias = Mapping[str, Mapping[str, QuantizedTensor]]  # sites by the quantizer of a reconstructed allocation

DATA_FREE: dict[str, Quantizer] = {"clip": clip.quantize, "minmax": minmax.quantize, "hqq": hqq.quantize}
CALIBRATED: dict[str, CalibratedQuantizer] = {
    "gptq": gptq.quantize,
    "awq": awq.quantize,
    "awq_gptq": awq_gptq.quantize,
}
QUANTIZERS = (*DATA_FREE, *CALIBRATED)
SCALING = frozenset({"awq", "awq_gptq"})  # scale columns: what makes their inputs has to take the scales up (`fold`)
WITHOUT_INPUTS = "clip"  # rounds a site that is no matrix of a linear layer in place of a calibrated quantizer

_DAMAGED = "The checkpoint is damaged: train it, convert it or fetch it anew."
_ANOTHER = "Give the state dict of the network that the allocation was made for."


@torch.no_grad()
def round_site(
    weight: torch.Tensor,
    format: Format,
    quantizer: str = "minmax",
    *,
    name: str = "weight",
    inputs: Inputs | None = None,
    learned: Learned | None = None,
) -> QuantizedTensor:
    """Round a tensor of any shape into `format`; an integer format sees it as (shape[0], all other axes).

    A sign is 1 where x >= 0, -0.0 too. A calibrated quantizer looks for the statistics of `name` in `inputs`; what has
    none there, because no linear layer multiplies by it, is rounded by WITHOUT_INPUTS. What reconstruction has rounded
    lies in `learned`. Raises FormatError, which says `name`, for numbers that are not finite or would not be in
    `format`, and AllocationError for an unknown quantizer, or a calibrated one without `inputs`.
    """
    weight = weight.detach()
    _refuse_nonfinite(weight, f"{name} has {{}} numbers that are not finite.", _DAMAGED)
    shape = tuple(weight.shape)
    if format.kind == "float":
        values = weight.to(value_dtype(format), copy=True)
        _refuse_nonfinite(values, f"{name}: {{}} numbers are too large for {format}.", "Keep it in float32.")
        return QuantizedTensor(format, shape, values=values)
    if format.kind == "sign":
        return QuantizedTensor(format, shape, codes=(weight >= 0).to(torch.uint8).reshape(matrix_shape(shape)))
    if weight.numel() == 0:
        raise FormatError(f"{name} of shape {list(shape)} has no numbers to round.", "Keep it in float32.")
    if learned is not None and quantizer in learned:
        return _as_learned(learned[quantizer], format, shape, name)
    matrix = weight.to(torch.float32).reshape(matrix_shape(shape))
    return replace(_rounded(matrix, format, quantizer, name, inputs), shape=shape)


@dataclass(frozen=True, eq=False)
class RoundedSites(Mapping[str, QuantizedTensor]):
    """The sites of an allocation by name, each rounded when it is asked for, so that one at a time is in memory.

    `state` is a state dict that has them, `inputs` what calibrated quantizers look at, `learned` what reconstruction
    has rounded. Raises AllocationError when the state lacks a site or has another shape.
    """

    state: Mapping[str, torch.Tensor]
    allocation: Allocation
    inputs: Inputs | None = None
    learned: Learned | None = None

    def __getitem__(self, name: str) -> QuantizedTensor:
        site = self.allocation.anatomy[name]
        if site.name not in self.state:
            raise AllocationError(f"The state has no tensor {site.name!r}.", _ANOTHER)
        weight = self.state[site.name]
        if tuple(weight.shape) != site.shape:
            raise AllocationError(
                f"{site.name} has shape {list(weight.shape)}, the allocation is for {list(site.shape)}.", _ANOTHER
            )
        fmt, quantizer = self._choices[site.name]
        return round_site(weight, fmt, quantizer, name=site.name, inputs=self.inputs, learned=self.learned)

    def exponents(self, name: str) -> torch.Tensor | None:
        """Those that the columns of a site are scaled by when it is rounded; None where they are not scaled."""
        quantizer = self._choices[name][1]
        if self.learned is not None and quantizer in self.learned:
            return self[name].exponents
        if quantizer not in SCALING or self.inputs is None or name not in self.inputs:
            return None
        return self.inputs[name].exponents

    @cached_property
    def _choices(self) -> dict[str, tuple[Format, str]]:
        return {site.name: (fmt, quantizer) for site, fmt, quantizer in self.allocation.choices()}

    def __iter__(self) -> Iterator[str]:
        return (site.name for site in self.allocation.anatomy.sites)

    def __len__(self) -> int:
        return len(self.allocation.anatomy.sites)


def _as_learned(
    sites: Mapping[str, QuantizedTensor], format: Format, shape: tuple[int, ...], name: str
) -> QuantizedTensor:
    found = sites.get(name)
    if found is None or (found.format, found.shape) != (format, shape):
        raise AllocationError(
            f"The reconstruction has no {name} of shape {list(shape)} in {format}.", "Reconstruct this allocation."
        )
    return found


def _rounded(matrix: torch.Tensor, format: Format, quantizer: str, name: str, inputs: Inputs | None) -> QuantizedTensor:
    if quantizer not in QUANTIZERS:
        raise AllocationError(f"There is no quantizer {quantizer!r}.", f"Choose one of: {', '.join(QUANTIZERS)}.")
    if quantizer in CALIBRATED and inputs is None:
        raise AllocationError(
            f"{quantizer} rounds {name} by what it sees on calibration text, and there are no statistics of that.",
            f"Collect them, or choose one of: {', '.join(DATA_FREE)}.",
        )
    if quantizer in CALIBRATED and inputs is not None and name in inputs:
        return CALIBRATED[quantizer](matrix, format, name=name, inputs=inputs[name])
    method = DATA_FREE[WITHOUT_INPUTS if quantizer in CALIBRATED else quantizer]
    return method(matrix, format, name=name)


def _refuse_nonfinite(values: torch.Tensor, problem: str, remedy: str) -> None:
    """Raise FormatError with the count in `problem`; float64 numbers that float32 cannot hold count too."""
    finite = torch.isfinite(values.to(torch.float32) if values.dtype == torch.float64 else values)
    if not bool(finite.all()):
        raise FormatError(problem.format(int((~finite).sum())), remedy)
