"""Which format every site of a network gets, and how many bytes that makes."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qslm.anatomy import Anatomy, Site
from qslm.errors import AllocationError, FormatError
from qslm.formats import FLOAT32, SIGN, Format, canonical_json, data_bytes, header, stored_tensors
from qslm.formats.manifest import Manifest
from qslm.units import format_bytes

_QUANTIZER = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
_WRITTEN = "Give the text that Allocation.to_json() wrote."
_ANOTHER = "Give the allocation of this network: the other one has other sites."


@dataclass(frozen=True)
class Footprint:
    """Bytes of a packed network: codes and matrices, scales with zero points, vectors and buffers, header."""

    weights: int
    scales: int
    vectors: int
    header: int

    @property
    def tensors(self) -> int:
        """Bytes of all tensors."""
        return self.weights + self.scales + self.vectors

    @property
    def file(self) -> int:
        """Bytes of the file: the tensors and the header."""
        return self.tensors + self.header

    def __str__(self) -> str:
        return f"file {format_bytes(self.file)}, tensors {format_bytes(self.tensors)}"


@dataclass(frozen=True)
class Allocation:
    """`formats[i]` is how `anatomy.sites[i]` is stored, `quantizer` the method that rounds into it.

    Vectors and buffers take float formats only, and `sign` only a site that the network binarizes. Raises
    AllocationError when a format does not suit its site or their numbers differ.
    """

    anatomy: Anatomy
    formats: tuple[Format, ...]
    quantizer: str = "minmax"

    def __post_init__(self) -> None:
        if len(self.formats) != len(self.anatomy.sites):
            raise AllocationError(
                f"There are {len(self.formats)} formats for {len(self.anatomy.sites)} sites.",
                "Give one format per site.",
            )
        if not _QUANTIZER.fullmatch(self.quantizer):
            raise AllocationError(
                f"{self.quantizer[:64]!r} is not the name of a quantizer.", "Give a name such as clip or minmax."
            )
        for site, format in self.items():
            _check(site, format)

    def __hash__(self) -> int:
        return hash((self.formats, self.quantizer))

    @classmethod
    def uniform(
        cls,
        anatomy: Anatomy,
        format: Format,
        *,
        vectors: Format = FLOAT32,
        signs: bool = True,
        quantizer: str = "minmax",
    ) -> "Allocation":
        """Every matrix in `format`, vectors and buffers in `vectors`, binarized sites as signs if `signs`."""

        def choose(site: Site) -> Format:
            if site.binarized and signs:
                return SIGN
            return vectors if site.is_vector else format

        return cls(anatomy, tuple(map(choose, anatomy.sites)), quantizer)

    @classmethod
    def float32(cls, anatomy: Anatomy) -> "Allocation":
        """Every site as it is: the allocation that changes nothing."""
        return cls.uniform(anatomy, FLOAT32, signs=False)

    def replace(self, site_names: Iterable[str], format: Format) -> "Allocation":
        """This allocation with other formats at some sites; an alias stands for its site."""
        changed = {self.anatomy[name].name for name in site_names}
        formats = tuple(format if site.name in changed else old for site, old in self.items())
        return Allocation(self.anatomy, formats, self.quantizer)

    def items(self) -> Iterator[tuple[Site, Format]]:
        """Every site with its format."""
        return zip(self.anatomy.sites, self.formats, strict=True)

    def __getitem__(self, name: str) -> Format:
        return self._by_name[self.anatomy[name].name]

    @cached_property
    def _by_name(self) -> dict[str, Format]:
        return {site.name: format for site, format in self.items()}

    def diff(self, other: "Allocation") -> list[tuple[str, Format, Format]]:
        """(site name, format here, format there) where two allocations of one network differ."""
        _same_names(set(self._by_name), set(other._by_name), "The other allocation")
        theirs = other._by_name
        return [(name, old, theirs[name]) for name, old in self._by_name.items() if old != theirs[name]]

    def to_json(self) -> str:
        """Canonical JSON: equal allocations, and only they, have equal text."""
        sites = {site.name: str(format) for site, format in self.items()}
        return canonical_json({"quantizer": self.quantizer, "sites": sites})

    @classmethod
    def from_json(cls, anatomy: Anatomy, text: str) -> "Allocation":
        """The inverse of `to_json`. Raises AllocationError when the text is not that of this network."""
        content = _parsed(text)
        sites = content["sites"]
        _same_names({site.name for site in anatomy.sites}, set(sites), "The text of the allocation")
        try:
            formats = tuple(Format.parse(sites[site.name]) for site in anatomy.sites)
        except FormatError as error:
            raise AllocationError(error.problem, error.remedy) from error
        return cls(anatomy, formats, content["quantizer"])

    @cached_property
    def key(self) -> str:
        """The sha256 of `to_json`, in hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def metadata(self) -> str:
        """What the file says about itself, as canonical JSON: formats, shapes, aliases, quantizer."""
        return self.manifest().text()

    def manifest(self) -> Manifest:
        """What a file needs to be read without the network."""
        sites = {site.name: (format, site.shape) for site, format in self.items()}
        aliases = {alias: site.name for site in self.anatomy.sites for alias in site.aliases}
        return Manifest(sites, aliases, self.quantizer)

    def paper_bytes(self) -> int:
        """Bytes as QSLM counts them: the weights alone, no scales, zero points or header; vectors in float32.

        Derived: the paper does not say so, but its saving of 68.7 % is that of 10-bit matrices with float32 vectors.
        """
        return self.footprint().weights + 4 * sum(site.numel for site in self.anatomy.sites if site.is_vector)

    def paper_saving(self) -> float:
        """The share of the float32 bytes that is saved by the paper's count."""
        return 1 - self.paper_bytes() / max(self.anatomy.float32_bytes, 1)

    def footprint(self) -> Footprint:
        """What the packed network takes, in bytes, to the byte. Raises FormatError when names collide."""
        return self._footprint

    @cached_property
    def _footprint(self) -> Footprint:
        weights = scales = vectors = 0
        for site, format in self.items():
            first, *grid = map(data_bytes, stored_tensors(format, site.shape, site.name))
            weights += 0 if site.is_vector else first
            vectors += first if site.is_vector else 0
            scales += sum(grid)
        manifest = self.manifest()
        return Footprint(weights, scales, vectors, len(header(manifest.stored(), manifest.text())))

    def __str__(self) -> str:
        width = max((len(site.name) for site in self.anatomy.sites), default=0)
        lines = [f"{site.name:<{width}}  {format!s:<18} {_size(site, format):>14,} B" for site, format in self.items()]
        return "\n".join([*lines, f"{self.quantizer}: {self.footprint()}"])


def _size(site: Site, format: Format) -> int:
    return sum(map(data_bytes, stored_tensors(format, site.shape, site.name)))


def _check(site: Site, format: Format) -> None:
    if format.is_integer and site.is_vector:
        raise AllocationError(
            f"{site.name} of shape {list(site.shape)} is a vector or a buffer and cannot be {format}.",
            "Give it float32, float16 or bfloat16.",
        )
    if format.kind == "sign" and not site.binarized:
        raise AllocationError(
            f"{site.name} cannot be stored as signs: the network does not binarize it.",
            "Choose another format.",
        )


def _parsed(text: str) -> dict[str, Any]:
    """The JSON of an allocation with its types checked; it may come from a file that anyone wrote."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AllocationError("The allocation is not JSON.", _WRITTEN) from error
    if not isinstance(content, dict) or set(content) != {"quantizer", "sites"}:
        raise AllocationError("The JSON of the allocation has not the keys quantizer and sites alone.", _WRITTEN)
    sites = content["sites"]
    if not isinstance(sites, dict) or not all(
        isinstance(text, str) for text in [content["quantizer"], *sites.values()]
    ):
        raise AllocationError("The JSON of the allocation does not map names to formats.", _WRITTEN)
    return content


def _same_names(ours: set[str], theirs: set[str], where: str) -> None:
    if missing := sorted(ours - theirs):
        raise AllocationError(f"{where} lacks {missing[0]!r}, {len(missing)} sites in all.", _ANOTHER)
    if unknown := sorted(theirs - ours):
        raise AllocationError(f"{where} has {unknown[0][:200]!r}, which is no site of the network.", _ANOTHER)
