"""What a packed file says about itself, and the header that follows from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from qslm.errors import ArtifactError
from qslm.formats.format import Format
from qslm.formats.layout import StoredTensor, canonical_json, data_bytes, header, stored_tensors
from qslm.formats.reading import parse_object

VERSION = 2  # 1 stored codes row by row

_MOST_NUMBERS = 1 << 48  # in one tensor
_MOST_AXES = 8
_ALTERED = "The file was damaged or altered: write it again or fetch it again."


@dataclass(frozen=True)
class Manifest:
    """Format and shape of every site by its name, the site that each alias stands for, and the quantizers.

    `quantizer` is the name of one, or that of every integer site where they differ. `by_columns` are the names, sorted,
    of integer sites whose codes are stored column after column, as their inputs are mostly zero.
    """

    sites: dict[str, tuple[Format, tuple[int, ...]]]
    aliases: dict[str, str]
    quantizer: str | dict[str, str]
    by_columns: tuple[str, ...] = ()

    def text(self) -> str:
        """Canonical JSON, the metadata of the file."""
        sites = {name: [str(format), list(shape)] for name, (format, shape) in self.sites.items()}
        content = {"aliases": self.aliases, "quantizer": self.quantizer, "sites": sites, "version": VERSION}
        return canonical_json(content | {"by_columns": self.by_columns} if self.by_columns else content)

    @classmethod
    def parse(cls, text: str) -> "Manifest":
        """The inverse of `text`, of which nothing is trusted. Raises ArtifactError or FormatError."""
        content = parse_object(text, "The metadata")
        if content.get("version") != VERSION:
            found = str(content.get("version"))[:40]
            raise ArtifactError(
                f"The file is of version {found}, this qslm reads version {VERSION}.", "Install a newer qslm."
            )
        sites, aliases = content.get("sites"), content.get("aliases")
        quantizer = _quantizer(content.get("quantizer"))
        if not (isinstance(sites, dict) and isinstance(aliases, dict) and quantizer is not None):
            raise ArtifactError("The metadata has not its fields: sites, aliases, quantizer.", _ALTERED)
        for alias, name in aliases.items():
            if not isinstance(name, str) or name not in sites or alias in sites:
                raise ArtifactError(f"The alias {alias[:200]!r} does not stand for a site.", _ALTERED)
        read = {name: _site(name, site) for name, site in sites.items()}
        manifest = cls(read, aliases, quantizer, _by_columns(content.get("by_columns", []), read))
        if manifest.text() != text:
            raise ArtifactError("The metadata is not canonical JSON.", _ALTERED)
        return manifest

    def stored(self) -> list[StoredTensor]:
        """Name, type and shape of every tensor of the file."""
        return [stored for name, site in self.sites.items() for stored in stored_tensors(*site, name)]

    def check(self, found: bytes, file_bytes: int) -> None:
        """Raise ArtifactError unless `found` is the header that follows, and the file has the bytes of it."""
        expected = header(self.stored(), self.text())
        if found != expected:
            raise ArtifactError(_difference(found, expected), _ALTERED)
        size = len(found) + sum(map(data_bytes, self.stored()))
        if file_bytes != size:
            raise ArtifactError(f"The file has {file_bytes:,} bytes, its header makes {size:,}.", _ALTERED)


def _quantizer(found: object) -> str | dict[str, str] | None:
    """One name, or the names of sites' quantizers; None where it is neither."""
    if isinstance(found, dict):
        return found if all(isinstance(name, str) for name in found.values()) else None
    return found if isinstance(found, str) else None


def _by_columns(found: object, sites: Mapping[str, tuple[Format, tuple[int, ...]]]) -> tuple[str, ...]:
    """The names of sites that are stored by columns, each of at most 8 bits. Raises ArtifactError."""
    if not isinstance(found, list):
        raise ArtifactError("The metadata has no list of the sites that are stored by columns.", _ALTERED)
    for name in found:
        if not isinstance(name, str) or name not in sites or not sites[name][0].has_tiles:
            raise ArtifactError(f"{str(name)[:200]!r} cannot be stored by columns.", _ALTERED)
    return tuple(sorted(set(found)))


def _site(name: str, site: object) -> tuple[Format, tuple[int, ...]]:
    match site:
        case [str(text), list(shape)] if all(type(size) is int and size >= 0 for size in shape):
            if len(shape) > _MOST_AXES or prod(max(size, 1) for size in shape) > _MOST_NUMBERS:
                raise ArtifactError(f"The shape {str(shape)[:200]} of {name[:200]!r} is too large.", _ALTERED)
            format = Format.parse(text)
            if format.is_integer and 0 in shape:
                raise ArtifactError(f"{name[:200]!r} has no numbers and cannot be {format}.", _ALTERED)
            return format, tuple(shape)
    raise ArtifactError(f"The site {name[:200]!r} has not a format and a shape.", _ALTERED)


def _difference(found: bytes, expected: bytes) -> str:
    """Where two headers differ, in words."""
    wanted, there = parse_object(expected[8:], "The header"), parse_object(found[8:], "The header")
    for name in sorted(wanted.keys() | there.keys()):
        if wanted.get(name) != there.get(name):
            says, promised = str(there.get(name))[:200], str(wanted.get(name))[:200]
            return f"The header says {says} of {name[:200]!r}, its allocation makes {promised}."
    return "The header is not written as qslm writes it."
