"""A tensor in its format: in memory, and as the tensors that a file holds of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf, prod

import torch

from qslm.errors import AllocationError, ArtifactError
from qslm.formats.dtypes import TYPES, code_dtype
from qslm.formats.format import Format, matrix_shape
from qslm.formats.layout import StoredTensor, stored_tensors
from qslm.formats.packing import pack, unpack, unused_bits
from qslm.formats.scales import multiples, powers_of_two, scale_codes, scale_problem
from qslm.formats.tiles import pack_matrix, tiled, unpack_matrix, untiled

CHUNK = 1 << 20  # numbers worked on at once: 4 MB in float32, which a cache can hold

_REMEDY = "The file is damaged or was not written by qslm: write it again or fetch it again."


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A tensor of `shape` rounded into `format`. With (out, in) = matrix_shape(shape):

    codes: (out, in) integers, for a sign 1 where x >= 0; scales: (rows, groups) in their stored type,
    those of 8 bits as the float32 numbers that they stand for, and step: (1,) or (rows, 1) float32, what these are
    multiples of, or shifts;
    zeros: (rows, groups) integers, affine formats only; values: `shape` in a float type, float formats only.
    exponents: k (in,) int8 of columns that were multiplied by 2^k before they were rounded. No file holds them: what
    makes the inputs takes them up (`quantizers.fold`).
    """

    format: Format
    shape: tuple[int, ...]
    codes: torch.Tensor | None = None
    scales: torch.Tensor | None = None
    zeros: torch.Tensor | None = None
    values: torch.Tensor | None = None
    step: torch.Tensor | None = None
    exponents: torch.Tensor | None = None

    def dequantize(self) -> torch.Tensor:
        """The numbers that it stands for, a new float32 tensor of `shape`: (code - zero) * scale * 2^-k."""
        if self.values is not None:
            return self.values.to(torch.float32, copy=True)
        assert self.codes is not None
        if self.scales is None:
            return (self.codes.to(torch.float32) * 2 - 1).reshape(self.shape)
        numbers = torch.empty(self.codes.shape, dtype=torch.float32, device=self.codes.device)
        columns = numbers.shape[1]
        for rows in row_chunks(*numbers.shape):
            part = self.codes[rows].to(torch.float32)
            if self.zeros is not None:
                part -= spread(part_of(self.zeros, rows).to(torch.float32), columns, self.format)
            scales = part_of(self.scales, rows).to(torch.float32)
            torch.mul(part, spread(scales, columns, self.format), out=numbers[rows])
        if self.exponents is not None:
            numbers *= powers_of_two(-self.exponents)
        return numbers.reshape(self.shape)

    def stored(self, name: str, *, by_columns: bool = False) -> dict[str, torch.Tensor]:
        """The tensors that a file holds of it, by name; their types and shapes are `stored_tensors`.

        by_columns: its codes column after column. Raises AllocationError when its columns are scaled.
        """
        if self.exponents is not None:
            raise AllocationError(
                f"The columns of {name} are scaled, and no file holds the scales.",
                "Fold them into what makes its inputs: qslm.quantizers.fold.",
            )
        if self.values is not None:
            return {name: self.values}
        assert self.codes is not None
        if self.scales is None:
            return {f"{name}.signs": pack_matrix(self.codes, 1, by_columns=by_columns)}
        stored = {f"{name}.codes": _packed(_offset(self.codes, self.format), self.format, by_columns)}
        stored[f"{name}.scales"] = tiled(
            self.scales if self.step is None else scale_codes(self.scales, self.step, self.format)
        )
        if self.step is not None:
            stored[f"{name}.step"] = self.step
        if self.zeros is not None:
            stored[f"{name}.zeros"] = pack(tiled(self.zeros), self.format.bits)
        return stored

    @classmethod
    def from_stored(
        cls,
        format: Format,
        shape: tuple[int, ...],
        name: str,
        tensors: Mapping[str, torch.Tensor],
        *,
        by_columns: bool = False,
    ) -> "QuantizedTensor":
        """The inverse of `stored`: the same bits again.

        Raises ArtifactError when a tensor is missing, has another type or shape, has unused bits that are not
        zero, or has scales that are not positive, or scales or numbers that are not finite.
        """
        parts = {stored[0]: _checked(stored, tensors) for stored in stored_tensors(format, shape, name)}
        if format.kind == "float":
            _refuse(not bool(torch.isfinite(parts[name]).all()), name, "it holds numbers that are not finite")
            return cls(format, shape, values=parts[name])
        rows, columns = matrix_shape(shape)
        if format.kind == "sign":
            return cls(format, shape, codes=_unpacked(f"{name}.signs", parts, format, (rows, columns), by_columns))
        grid = format.scale_shape(rows, columns)
        scales, step = untiled(parts[f"{name}.scales"], grid), parts.get(f"{name}.step")
        if step is not None:
            low, high = (float(end) for end in torch.aminmax(step))  # NaN goes through
            _refuse(not 0 < low <= high < inf, f"{name}.step", f"a step of {low} to {high} is not positive and finite")
            if format.scale_type == "power":
                _refuse(int(scales.max()) > format.most_shift, f"{name}.scales", "a shift is beyond 8 bits")
            scales = multiples(scales, step, format)
        problem = scale_problem(scales, format)
        _refuse(bool(problem), f"{name}.scales", problem)
        codes = _unpacked(f"{name}.codes", parts, format, (rows, columns), by_columns)
        zeros = None
        if format.has_zeros:
            zeros = untiled(_unpacked_stream(f"{name}.zeros", parts, format.bits, scales.numel()), grid)
        return cls(format, shape, codes=_recentre(codes, format), scales=scales, zeros=zeros, step=step)


def row_chunks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows of a matrix, each of about CHUNK numbers, so that no copy of the whole is needed."""
    step = max(1, CHUNK // max(columns, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def part_of(grid: torch.Tensor, rows: slice) -> torch.Tensor:
    """The scales (or zero points) of some rows; a scale of the whole tensor is the scale of each."""
    return grid if grid.shape[0] == 1 else grid[rows]


def spread(grid: torch.Tensor, columns: int, format: Format) -> torch.Tensor:
    """Scales (rows, groups) as a factor of a matrix (rows, columns): (rows, 1) or (rows, columns)."""
    if format.granularity != "group":
        return grid
    return grid.repeat_interleave(format.group_size, dim=1)[:, :columns]


def _offset(codes: torch.Tensor, format: Format) -> torch.Tensor:
    """Codes as they are packed: unsigned, those of a symmetric format counted from the lowest."""
    if not format.symmetric:
        return codes
    if format.bits <= 8:
        return (codes.to(torch.int16) - format.lowest).to(torch.uint8)
    return codes.to(torch.int32) - format.lowest


def _recentre(codes: torch.Tensor, format: Format) -> torch.Tensor:
    """The inverse of `_offset`."""
    if not format.symmetric:
        return codes
    wide = torch.int16 if format.bits <= 8 else torch.int32
    return (codes.to(wide) + format.lowest).to(code_dtype(format))


def _checked(stored: StoredTensor, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    name, dtype, shape = stored
    if name not in tensors:
        raise ArtifactError(f"The tensor {name!r} is missing.", _REMEDY)
    tensor = tensors[name]
    found = TYPES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape)
    _refuse(found != (dtype, shape), name, f"it is {found[0]} {list(found[1])}, not {dtype} {list(shape)}")
    return tensor


def _packed(codes: torch.Tensor, format: Format, by_columns: bool) -> torch.Tensor:
    """Codes (out, in) as a file holds them."""
    return pack_matrix(codes, format.bits, by_columns=by_columns) if format.has_tiles else pack(codes, format.bits)


def _unpacked(
    name: str, parts: Mapping[str, torch.Tensor], format: Format, shape: tuple[int, int], by_columns: bool
) -> torch.Tensor:
    """The inverse of `_packed`: codes of `shape` (out, in)."""
    if not format.has_tiles:
        return _unpacked_stream(name, parts, format.bits, prod(shape)).reshape(shape)
    _refuse_unused(name, parts[name], format.bits, prod(shape))
    return unpack_matrix(parts[name], format.bits, shape, by_columns=by_columns)


def _unpacked_stream(name: str, parts: Mapping[str, torch.Tensor], bits: int, count: int) -> torch.Tensor:
    _refuse_unused(name, parts[name], bits, count)
    return unpack(parts[name], bits, count)


def _refuse_unused(name: str, packed: torch.Tensor, bits: int, count: int) -> None:
    """Raise ArtifactError where bits behind the last code are set; tiles are whole bytes, so only a stream has some."""
    _refuse(unused_bits(packed, bits, count) != 0, name, "it has unused bits that are not zero")


def _refuse(wrong: bool, name: str, problem: str) -> None:
    if wrong:
        raise ArtifactError(f"The tensor {name!r}: {problem}.", _REMEDY)
