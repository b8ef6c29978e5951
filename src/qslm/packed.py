"""What a packed model says of itself, without its weights. Loads without PyTorch."""

import hashlib
import re
from pathlib import Path
from typing import Any

from qslm import folders
from qslm.errors import ArtifactError
from qslm.folders import CONFIG, ENTRY, LARGEST_JSON, MODEL
from qslm.formats import canonical_json
from qslm.formats.manifest import Manifest
from qslm.formats.reading import metadata_of, parse_object, read_bytes, read_header, reading

ALTERED = "The artifact was damaged or altered: write it again or fetch it again."

_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


def folder_of(path: Path | str) -> Path:
    """The folder of a packed model that is named by its folder or its model file."""
    path = Path(path)
    return path.parent if path.name == MODEL else path


def read_manifest(folder: Path, entry: dict[str, Any]) -> Manifest:
    """What the header of the model file holds, which follows from its metadata. Raises ArtifactError."""
    path = folder / MODEL
    with reading(path):
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise ArtifactError(f"{path} has {size:,} bytes, {CONFIG} says {entry['bytes']:,}.", ALTERED)
        found = read_header(path)
        manifest = Manifest.parse(metadata_of(found))
        manifest.check(found, size)
        return manifest


def read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json without our entry, as it was written, and the entry with its types checked. Raises ArtifactError."""
    path = folder / CONFIG
    with reading(path):
        present = path.exists()
        there = folder.exists()
    if not there:
        raise ArtifactError(f"{folder} does not exist.", "Give a folder that `qslm search` packed.")
    if not folders.is_artifact(folder) and folders.has_metadata(folder / MODEL):
        state = "damaged" if present else "missing"
        raise ArtifactError(f"{path} is {state}: {MODEL} beside it is a packed model of qslm.", ALTERED)
    if not present:
        raise ArtifactError(
            f"{folder} is not the folder of a packed model: it has no {CONFIG}.", f"Give {_packed_folder(folder)}."
        )
    config = parse_object(read_bytes(path, LARGEST_JSON), str(path))
    match entry := config.pop(ENTRY, None):
        case {"bytes": int(), "sha256": str(model), "config_sha256": str(digest)} if _DIGEST.fullmatch(model):
            if digest != _config_digest(config, path):
                raise ArtifactError(f"{path} is not as it was written.", ALTERED)
            return config, entry
    if folders.has_metadata(folder / MODEL):
        raise ArtifactError(f"{path} is damaged: {MODEL} beside it is a packed model of qslm.", ALTERED)
    raise ArtifactError(f"{path} does not describe a packed model of qslm.", f"Give {_packed_folder(folder)}.")


def _packed_folder(folder: Path) -> str:
    """What to give in place of `folder`: the artifact in it, where it is the run folder of a study."""
    packed = folder / folders.ARTIFACT
    return f"the packed model in it: {packed}" if folders.is_artifact(packed) else "a folder that `qslm search` packed"


def _config_digest(config: dict[str, Any], path: Path) -> str:
    try:
        return hashlib.sha256(canonical_json(config).encode()).hexdigest()
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} has numbers or a depth that JSON has not.", ALTERED) from error
