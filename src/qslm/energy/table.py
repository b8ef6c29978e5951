"""What one operation and one byte cost: published energies as a file that a user can replace.

The table that ships, `tables/45nm.json`, holds the values of M. Horowitz, "Computing's energy problem (and what we can
do about it)", ISSCC 2014, for 45 nm and 0.9 V; an entry that is not his says `derived` and how. There is none for
22 or 7 nm: no complete one was at hand that could be read at its source. A file of one's own has the same form:

    {"name": ..., "source": ...,
     "operations": {"add int8": {"pj": 0.03}, ..., "multiply int4": {"pj": 0.05, "derived": "why"}},
     "memory": {"DRAM": {"pj_per_byte": 162.5}, ...}}
"""

import re
from dataclasses import dataclass
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any

from qslm.energy.operations import Operation
from qslm.errors import ArtifactError, EnergyError
from qslm.folders import LARGEST_JSON
from qslm.formats.reading import parse_object, read_bytes

SHIPPED = "45nm"
MOST = 1e6  # pJ of one operation or byte: a microjoule, beyond which a unit was mistaken

_OPERATION = re.compile(
    r"(add|multiply) (int[1-9][0-9]?|float(16|32))|shift int32|compare (int|float)32|"
    r"(rescale|divide|root|exponential) float32",
    re.ASCII,
)
_NEEDED = (
    "add int8", "add int32", "add float16", "add float32", "multiply int8", "multiply float16", "multiply float32",
    "compare int32", "compare float32", "shift int32", "rescale float32", "divide float32", "root float32",
    "exponential float32",
)  # fmt: skip
_TYPE = re.compile(r"(int|float)([1-9][0-9]?)", re.ASCII)
_REMEDY = "Take src/qslm/energy/tables/45nm.json as a pattern."


@dataclass(frozen=True)
class Price:
    """What something costs, in pJ, and whether that was published or derived."""

    pj: float
    derived: bool = False

    def __add__(self, other: "Price") -> "Price":
        return Price(self.pj + other.pj, self.derived or other.derived)


@dataclass(frozen=True)
class Table:
    """Energies by name: pJ of an operation on one type, and pJ of a byte that is read from or written to a memory."""

    name: str
    source: str
    operations: dict[str, Price]
    memory: dict[str, Price]

    def operation(self, operation: Operation) -> Price:
        """What one operation costs; what the table lacks is derived.

        A mac is a product and an addition to its result, an accumulate the addition alone. A product of an integer and
        a float costs that of the float: the integer is converted on its way, which is not counted. Raises EnergyError
        for an operation that cannot be derived.
        """
        if operation.kind == "accumulate":
            return self._add(operation.result)
        if operation.kind == "mac":
            return self._multiply(*operation.operands) + self._add(operation.result)
        if operation.kind == "add":
            return self._add(operation.operands[0])
        if operation.kind == "multiply":
            return self._multiply(operation.operands[0], operation.operands[0])
        return self._named(f"{operation.kind} {operation.operands[0]}")

    def byte(self, level: str) -> Price:
        """What moving a byte costs. Raises EnergyError where the table has no such memory."""
        if level not in self.memory:
            raise EnergyError(
                f"The table {self.name!r} has no memory {level[:40]!r}; it has {', '.join(self.memory)}.",
                "Choose one of these.",
            )
        return self.memory[level]

    def _add(self, type: str) -> Price:
        """An integer of another width costs in proportion to its bits, from the next wider one, or the widest."""
        kind, bits = _parsed(type)
        if kind == "float" or f"add {type}" in self.operations:
            return self._named(f"add {type}")
        near = self._nearest("add", bits)
        return Price(self.operations[f"add int{near}"].pj * bits / near, derived=True)

    def _multiply(self, one: str, other: str) -> Price:
        """Integers of other widths cost in proportion to the product of their bits, from the next wider multiplier."""
        (kind, bits), (other_kind, other_bits) = _parsed(one), _parsed(other)
        if "float" in (kind, other_kind):
            widest = max(width for found, width in ((kind, bits), (other_kind, other_bits)) if found == "float")
            return self._named(f"multiply float{widest}")
        if bits == other_bits and f"multiply int{bits}" in self.operations:
            return self._named(f"multiply int{bits}")
        near = self._nearest("multiply", max(bits, other_bits))
        return Price(self.operations[f"multiply int{near}"].pj * bits * other_bits / near**2, derived=True)

    def _nearest(self, kind: str, bits: int) -> int:
        widths = sorted(_parsed(name.split()[1])[1] for name in self.operations if name.startswith(f"{kind} int"))
        return next((width for width in widths if width >= bits), widths[-1])

    def _named(self, name: str) -> Price:
        if name not in self.operations:
            raise EnergyError(f"The table {self.name!r} has no energy of {name!r}.", _REMEDY)
        return self.operations[name]


def load_table(path: Path | str | None = None) -> Table:
    """The table of a file, or the one that ships. Raises EnergyError, which says what is wrong where."""
    if path is None:
        shipped = files("qslm.energy") / "tables" / f"{SHIPPED}.json"
        return parse_table(shipped.read_text(encoding="utf-8"), str(shipped))
    try:
        return parse_table(read_bytes(Path(path), LARGEST_JSON), str(path))
    except ArtifactError as error:
        raise EnergyError(error.problem, _REMEDY) from error


def parse_table(text: bytes | str, where: str) -> Table:
    """A table from its JSON; `where` names it in errors. Raises EnergyError."""
    try:
        content = parse_object(text, where)
    except ArtifactError as error:
        raise EnergyError(error.problem, _REMEDY) from error
    _check_keys(content, {"name", "source", "operations", "memory"}, where)
    for key in ("name", "source"):
        if not isinstance(content[key], str) or not 0 < len(content[key]) <= 1000:
            raise EnergyError(f"{where} has no text of 1 to 1,000 characters under {key!r}.", _REMEDY)
    operations = _prices(content["operations"], "operations", "pj", where)
    for name in operations:
        if not _OPERATION.fullmatch(name):
            raise EnergyError(f"{where} prices {name[:40]!r}, which is no operation that is counted.", _REMEDY)
    if lacking := [name for name in _NEEDED if name not in operations]:
        raise EnergyError(f"{where} lacks the energy of {', '.join(lacking)}.", "Add what is missing.")
    memory = _prices(content["memory"], "memory", "pj_per_byte", where)
    if not memory:
        raise EnergyError(f"{where} has no memory at all.", _REMEDY)
    return Table(content["name"], content["source"], operations, memory)


def _prices(content: Any, part: str, unit: str, where: str) -> dict[str, Price]:
    if not isinstance(content, dict):
        raise EnergyError(f"{where} has no object under {part!r}.", _REMEDY)
    found = {}
    for name, entry in content.items():
        place = f"{where}, {part}, {name[:40]!r}"
        if not isinstance(entry, dict):
            raise EnergyError(f"{place} is not an object.", _REMEDY)
        _check_keys(entry, {unit}, place, frozenset({"derived"}))
        energy, derived = entry[unit], entry.get("derived", "")
        if isinstance(energy, bool) or not isinstance(energy, int | float) or not _is_energy(energy):
            raise EnergyError(
                f"{place} has {str(energy)[:40]} as {unit}.", f"Give a number from 0 to {MOST:,.0f} in pJ."
            )
        if not isinstance(derived, str):
            raise EnergyError(f"{place} does not say in a text how it was derived.", _REMEDY)
        found[name] = Price(float(energy), bool(derived))
    return found


def _is_energy(number: int | float) -> bool:
    return 0 <= number <= MOST and isfinite(number)


def _check_keys(content: dict[str, Any], needed: set[str], where: str, more: frozenset[str] = frozenset()) -> None:
    if missing := sorted(needed - set(content)):
        raise EnergyError(f"{where} lacks the key {missing[0]!r}.", _REMEDY)
    if unknown := sorted(set(content) - needed - more):
        raise EnergyError(f"{where} has the unknown key {unknown[0][:40]!r}.", _REMEDY)


def _parsed(type: str) -> tuple[str, int]:
    """Kind and bits of a type such as int4."""
    matched = _TYPE.fullmatch(type)
    if matched is None:
        raise EnergyError(f"{type[:40]!r} is not a type of a number.", "Give one such as int4, int32 or float16.")
    return matched[1], int(matched[2])
