"""Which format every site of a network gets, and how many bytes that makes."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

from qslm.anatomy import Anatomy, Site
from qslm.errors import AllocationError, FormatError
from qslm.formats import FLOAT32, SIGN, Format, canonical_json, data_bytes, header, stored_tensors
from qslm.formats.manifest import Manifest
from qslm.units import format_bytes

Quantizers: TypeAlias = str | tuple[str, ...]

RECONSTRUCTED = "reconstructed_"  # begins the quantizer of an allocation whose rounding was learned as a whole

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

    `quantizer` is one name for all integer sites or, where they differ, a tuple with the name of each site's; what is
    not rounded to integers has the empty name there. Vectors and buffers take float formats only, and `sign` only a
    site that the network binarizes. Raises AllocationError when a format does not suit its site or their numbers
    differ.
    """

    anatomy: Anatomy
    formats: tuple[Format, ...]
    quantizer: Quantizers = "minmax"

    def __post_init__(self) -> None:
        if len(self.formats) != len(self.anatomy.sites):
            raise AllocationError(
                f"There are {len(self.formats)} formats for {len(self.anatomy.sites)} sites.",
                "Give one format per site.",
            )
        object.__setattr__(self, "quantizer", self._normal(self.quantizer))
        for name in {self.quantizer} if isinstance(self.quantizer, str) else set(self.quantizer) - {""}:
            if not _QUANTIZER.fullmatch(name):
                raise AllocationError(
                    f"{name[:64]!r} is not the name of a quantizer.", "Give a name such as clip or minmax."
                )
        for site, format in self.items():
            _check(site, format)

    def _normal(self, quantizer: Quantizers) -> Quantizers:
        """One name where all integer sites have the same, so that equal allocations compare equal."""
        if isinstance(quantizer, str):
            return quantizer
        if len(quantizer) != len(self.formats):
            raise AllocationError(
                f"There are {len(quantizer)} quantizers for {len(self.formats)} sites.", "Give one per site, or one."
            )
        names = tuple(name * fmt.is_integer for name, fmt in zip(quantizer, self.formats, strict=True))
        used = {name for name, fmt in zip(names, self.formats, strict=True) if fmt.is_integer}
        return names if len(used) > 1 else next(iter(used), "minmax")

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
        quantizer: Quantizers = "minmax",
    ) -> "Allocation":
        """Every matrix in `format`, vectors and buffers in `vectors`, binarized sites as signs if `signs`.

        What cannot read spike counts reads numbers.
        """

        def choose(site: Site) -> Format:
            if site.binarized and signs:
                return SIGN
            return vectors if site.is_vector else readable(site, format)

        return cls(anatomy, tuple(map(choose, anatomy.sites)), quantizer)

    @classmethod
    def float32(cls, anatomy: Anatomy) -> "Allocation":
        """Every site as it is: the allocation that changes nothing."""
        return cls.uniform(anatomy, FLOAT32, signs=False)

    def replace(self, site_names: Iterable[str], format: Format, quantizer: str | None = None) -> "Allocation":
        """This allocation with another format at some sites, and another quantizer where one is given.

        An alias stands for its site. What cannot read spike counts reads numbers.
        """
        changed = {self.anatomy[name].name for name in site_names}
        formats = tuple(readable(site, format) if site.name in changed else old for site, old in self.items())
        names: Quantizers = self.quantizer
        if quantizer is not None:
            names = tuple(quantizer if site.name in changed else name for site, _, name in self.choices())
        return Allocation(self.anatomy, formats, names)

    def reconstructed(self) -> "Allocation":
        """This allocation with its rounding learned as a whole: its quantizer is named after this one."""
        return Allocation(self.anatomy, self.formats, RECONSTRUCTED + self.key[:16])

    @property
    def is_reconstructed(self) -> bool:
        """Whether its rounding was learned as a whole, so that no site can be rounded alone."""
        return isinstance(self.quantizer, str) and self.quantizer.startswith(RECONSTRUCTED)

    def items(self) -> Iterator[tuple[Site, Format]]:
        """Every site with its format."""
        return zip(self.anatomy.sites, self.formats, strict=True)

    def choices(self) -> Iterator[tuple[Site, Format, str]]:
        """Every site with its format and its quantizer, which is the empty name where nothing rounds to integers."""
        names = (self.quantizer,) * len(self.formats) if isinstance(self.quantizer, str) else self.quantizer
        for (site, format), name in zip(self.items(), names, strict=True):
            yield site, format, name * format.is_integer

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
        return canonical_json({"quantizer": self.named_quantizers, "sites": sites})

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
        quantizer = content["quantizer"]
        if isinstance(quantizer, dict):
            integers = {site.name for site, fmt in zip(anatomy.sites, formats, strict=True) if fmt.is_integer}
            _same_names(integers, set(quantizer), "The list of quantizers")
            quantizer = tuple(quantizer.get(site.name, "") for site in anatomy.sites)
        return cls(anatomy, formats, quantizer)

    @property
    def named_quantizers(self) -> str | dict[str, str]:
        """The quantizer as JSON: one name, or that of every integer site."""
        if isinstance(self.quantizer, str):
            return self.quantizer
        return {site.name: name for site, _, name in self.choices() if name}

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
        by_columns = sorted(site.name for site, format in self.items() if site.sparse and format.has_tiles)
        return Manifest(sites, aliases, self.named_quantizers, tuple(by_columns))

    @property
    def activation_bits(self) -> float:
        """Bits of a spike count, in the mean over all weights that read spike counts; 0 where none do."""
        reading = [(site.numel, format.activations) for site, format in self.items() if format.activations]
        return sum(numel * bits for numel, bits in reading) / sum(numel for numel, _ in reading) if reading else 0.0

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
        return "\n".join([*lines, f"{' '.join(self.quantizers) or 'floats'}: {self.footprint()}"])

    @property
    def quantizers(self) -> tuple[str, ...]:
        """The names of all quantizers that it uses, in order."""
        return tuple(sorted({name for _, _, name in self.choices() if name}))


def readable(site: Site, format: Format) -> Format:
    """The format, without spike counts where the site cannot read them."""
    return format if site.spiking or not format.activations else replace(format, activations=0)


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
    sites, quantizer = content["sites"], content["quantizer"]
    names = list(quantizer.values()) if isinstance(quantizer, dict) else [quantizer]
    if not isinstance(sites, dict) or not all(isinstance(text, str) for text in [*names, *sites.values()]):
        raise AllocationError("The JSON of the allocation does not map names to formats.", _WRITTEN)
    return content


def _same_names(ours: set[str], theirs: set[str], where: str) -> None:
    if missing := sorted(ours - theirs):
        raise AllocationError(f"{where} lacks {missing[0]!r}, {len(missing)} sites in all.", _ANOTHER)
    if unknown := sorted(theirs - ours):
        raise AllocationError(f"{where} has {unknown[0][:200]!r}, which is no site of the network.", _ANOTHER)
