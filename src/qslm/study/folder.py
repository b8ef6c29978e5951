"""The files of a run folder that are JSON: study.json, selection.json and energy.json."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qslm import folders
from qslm.anatomy import Anatomy, Site
from qslm.errors import ArtifactError, StudyError
from qslm.finite import finite
from qslm.formats import canonical_json
from qslm.formats.reading import file_digest
from qslm.formats.staging import write_bytes

STUDY, LEDGER, ARTIFACT, SELECTION = folders.STUDY, folders.LEDGER, folders.ARTIFACT, "selection.json"
ENERGY = "energy.json"  # what the selected allocation computes and moves, and what that costs
INPUTS = "inputs.safetensors"  # what calibrated quantizers look at
RECONSTRUCTIONS = "reconstructed"  # a folder of the learned rounding of finalists
VERSION = 1  # of study.json
AGAIN = "Run the search again in this folder."


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON that appears whole or not at all; an infinite number becomes null. Raises StudyError."""
    text = json.dumps(finite(content), indent=2, allow_nan=False).encode() + b"\n"
    try:
        write_bytes(path, text)
    except ArtifactError as error:
        raise StudyError(error.problem, error.remedy) from error


def remove_selection(run: Path) -> None:
    """Remove what an earlier search selected, and its energy, where its budget no longer holds. Raises StudyError."""
    _remove(run / ENERGY)
    _remove(run / SELECTION)


def remove_artifact(run: Path) -> None:
    """Remove the packed model of an earlier search, its config last: what is left of it stays known as ours.

    Another model, which qslm never writes there, is left alone. Raises StudyError.
    """
    packed = run / ARTIFACT
    if not folders.is_artifact(packed):
        return
    for name in (folders.MODEL, folders.TOKENIZER, folders.CONFIG):
        _remove(packed / name)
    with suppress(OSError):  # somebody's own file in it
        packed.rmdir()


def packed_digest(run: Path, selection: Mapping[str, Any], key: str) -> str | None:
    """The sha256 of the packed model where `selection` (selection.json) is of the allocation `key`.

    Raises StudyError when the model in the folder is another one.
    """
    if selection["selected"]["key"] != key:
        return None
    recorded, model = str(selection["artifact"]["sha256"]), run / ARTIFACT / folders.MODEL
    try:
        found = file_digest(model)
    except ArtifactError as error:
        raise StudyError(error.problem, AGAIN) from error
    if found != recorded:
        raise StudyError(f"{model} has the sha256 {found}, {SELECTION} says {recorded}.", AGAIN)
    return recorded


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StudyError(f"Cannot remove {path}: {error.strerror}.", "Choose another folder.") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read one of our JSON files. Raises StudyError when it is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise StudyError(f"There is no {path}.", "Give the run folder of a study.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise StudyError(f"Cannot read {path}: {error}.", AGAIN) from error
    if not isinstance(content, dict):
        raise StudyError(f"{path} is not a JSON object.", AGAIN)
    return content


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
                **({"spiking": True} if site.spiking else {}),
                **({"sparse": True} if site.sparse else {}),
            }
            for site in anatomy.sites
        ],
    }


def anatomy_digest(anatomy: Anatomy) -> str:
    """The sha256 of an anatomy, in hex."""
    return hashlib.sha256(canonical_json(anatomy_to_dict(anatomy)).encode()).hexdigest()


def check_unchanged(study: Mapping[str, Any], anatomy: Anatomy, identity: Mapping[str, Any]) -> None:
    """Refuse a study.json whose checkpoint, anatomy or task is not the one that the ledger belongs to.

    Raises StudyError, and KeyError or TypeError where something is missing.
    """
    checkpoint, task = identity["checkpoint"], identity["task"]
    pairs = [(f"checkpoint {name}", study["checkpoint"][name], checkpoint[name]) for name in ("digest", "bytes")]
    pairs += [(f"task {name}", study["task"][name], task[name]) for name in ("name", "metric", "higher_is_better")]
    for name, here, there in [*pairs, ("anatomy", anatomy_digest(anatomy), checkpoint["anatomy"])]:
        if here != there:
            raise StudyError(f"{STUDY} is not as it was written: its {name} is {here}, the ledger's {there}.", AGAIN)


def anatomy_from_dict(content: Any) -> Anatomy:
    """The inverse of `anatomy_to_dict`. Raises StudyError."""
    try:
        return Anatomy(tuple(map(_site, content["sites"])))
    except (KeyError, TypeError, ValueError) as error:
        raise StudyError(f"{STUDY} holds no anatomy: {error}.", AGAIN) from error


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
        bool(content.get("spiking", False)),
        bool(content.get("sparse", False)),
    )
