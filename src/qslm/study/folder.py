"""The files of a run folder that are JSON: study.json and selection.json."""

import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import IO, Any

from qslm.anatomy import Anatomy, Site
from qslm.errors import ArtifactError, StudyError
from qslm.formats.staging import commit, stage

STUDY, LEDGER, SELECTION, ARTIFACT = "study.json", "ledger.sqlite", "selection.json", "artifact"
VERSION = 1  # of study.json


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON that appears whole or not at all; an infinite number becomes null. Raises StudyError."""
    text = json.dumps(_finite(content), indent=2, sort_keys=False, allow_nan=False).encode() + b"\n"

    def fill(file: IO[bytes]) -> None:
        file.write(text)

    try:
        commit([stage(path, fill)])
    except ArtifactError as error:
        raise StudyError(error.problem, error.remedy) from error


def remove(path: Path) -> None:
    """Remove a file that no longer holds. Raises StudyError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StudyError(f"cannot remove {path}: {error.strerror}", "choose another folder") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read one of our JSON files. Raises StudyError when it is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise StudyError(f"there is no {path}", "give the run folder of a study") from error
    except (OSError, ValueError, RecursionError) as error:
        raise StudyError(f"cannot read {path}: {error}", "run the search again in this folder") from error
    if not isinstance(content, dict):
        raise StudyError(f"{path} is not a JSON object", "run the search again in this folder")
    return content


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float):
        return float(value) if isfinite(value) else None
    return value


def anatomy_to_dict(anatomy: Anatomy) -> dict[str, Any]:
    """An anatomy as JSON values."""
    return {
        "float32_bytes": anatomy.float32_bytes,
        "blocks": list(anatomy.blocks),
        "sites": [
            {
                "name": site.name,
                "shape": list(site.shape),
                "block": site.block,
                "module": site.module,
                "aliases": list(site.aliases),
                "binarized": site.binarized,
                "kind": site.kind,
            }
            for site in anatomy.sites
        ],
    }


def anatomy_from_dict(content: Any) -> Anatomy:
    """The inverse of `anatomy_to_dict`. Raises StudyError."""
    try:
        return Anatomy(tuple(map(_site, content["sites"])))
    except (KeyError, TypeError, ValueError) as error:
        raise StudyError(f"{STUDY} holds no anatomy: {error}", "run the search again in this folder") from error


def _site(content: dict[str, Any]) -> Site:
    kind = content["kind"]
    if kind not in ("parameter", "buffer"):
        raise ValueError(f"a site of kind {kind!r}")
    return Site(
        str(content["name"]),
        tuple(int(size) for size in content["shape"]),
        str(content["block"]),
        str(content["module"]),
        tuple(str(alias) for alias in content["aliases"]),
        bool(content["binarized"]),
        kind,
    )
