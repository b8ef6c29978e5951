"""The packed model: `model.safetensors`, with `config.json` and `tokenizer.json` beside it.

The header of the model file is a function of its metadata, so a reader computes it again and compares: types,
shapes and places of all tensors are right, or the file is refused. `config.json` carries the digests of all three
files and is written last.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qslm import folders, packed
from qslm.allocation import Allocation
from qslm.errors import AllocationError, ArtifactError
from qslm.folders import ENTRY, LARGEST_JSON
from qslm.formats import canonical_json, data_bytes, stored_tensors
from qslm.formats.container import stage_tensors
from qslm.formats.manifest import Manifest
from qslm.formats.quantized import QuantizedTensor
from qslm.formats.reading import file_digest, read_bytes, read_tensors, reading
from qslm.formats.staging import Staged, commit, discard, stage_bytes
from qslm.packed import ALTERED

MODEL, CONFIG, TOKENIZER = folders.MODEL, folders.CONFIG, folders.TOKENIZER


@dataclass(frozen=True, eq=False)
class Artifact:
    """A packed model as it was read: every site in its format, and what stands beside the file."""

    folder: Path
    config: dict[str, Any]
    tokenizer_json: str | None
    quantized: dict[str, QuantizedTensor]
    manifest: Manifest
    sha256: str
    file_bytes: int

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Every site as a float32 tensor by its name, and again under each alias."""
        state = {name: tensor.dequantize() for name, tensor in self.quantized.items()}
        return state | {alias: state[name] for alias, name in self.manifest.aliases.items()}

    @property
    def allocation_json(self) -> str:
        """The text that `Allocation.from_json` reads."""
        sites = {name: str(tensor.format) for name, tensor in self.quantized.items()}
        return canonical_json({"quantizer": self.manifest.quantizer, "sites": sites})


# ---- writing ---------------------------------------------------------------------------------------------------


def write(
    folder: Path | str,
    sites: Mapping[str, QuantizedTensor],
    allocation: Allocation,
    *,
    config: Mapping[str, Any],
    tokenizer_json: str | None = None,
) -> Artifact:
    """Pack the rounded `sites` (`quantizers.RoundedSites`) into `folder`, and read the result back.

    The folder gets all files or none; an artifact that was there is replaced, another model or a study is not. Raises
    ArtifactError when it cannot be written, AllocationError when a site is not as `allocation` says.
    """
    folder = folders.check(folder, "packing", ArtifactError)
    created = _make(folder)
    staged: list[Staged] = []
    try:
        _stage_all(staged, folder, sites, allocation, dict(config), tokenizer_json)
    except BaseException:
        discard(staged)
        if created:
            with suppress(OSError):
                folder.rmdir()
        raise
    commit(staged)
    if tokenizer_json is None:
        with suppress(OSError):  # read() refuses one that stays
            (folder / TOKENIZER).unlink(missing_ok=True)
    return read(folder)


def _stage_all(
    staged: list[Staged],
    folder: Path,
    sites: Mapping[str, QuantizedTensor],
    allocation: Allocation,
    config: dict[str, Any],
    tokenizer_json: str | None,
) -> None:
    model, digest = stage_tensors(folder / MODEL, _packed(sites, allocation), allocation.metadata())
    staged.append(model)
    size, promised = model[0].stat().st_size, allocation.footprint().file
    if size != promised:
        raise ArtifactError(
            f"The model takes {size:,} bytes, where its allocation promises {promised:,}.",
            "Write it again. If this repeats, it is a fault of qslm: please report it with the allocation.",
        )
    entry: dict[str, Any] = {"bytes": size, "sha256": digest}
    if tokenizer_json is not None:
        content = tokenizer_json.encode()
        entry["tokenizer_sha256"] = hashlib.sha256(content).hexdigest()
        staged.append(stage_bytes(folder / TOKENIZER, content))
    staged.append(stage_bytes(folder / CONFIG, _config_text(config, entry)))


def _config_text(config: dict[str, Any], entry: dict[str, Any]) -> bytes:
    config.pop(ENTRY, None)
    try:
        entry["config_sha256"] = hashlib.sha256(canonical_json(config).encode()).hexdigest()
        return json.dumps({**config, ENTRY: entry}, sort_keys=True, indent=2).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"The config is not JSON: {error}.", "Use texts, numbers, lists and dicts.") from error


def _packed(sites: Mapping[str, QuantizedTensor], allocation: Allocation) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for site, format in allocation.items():
        rounded = sites[site.name]
        if (rounded.format, rounded.shape) != (format, site.shape):
            raise AllocationError(
                f"{site.name} is {rounded.format} {list(rounded.shape)}, not {format} {list(site.shape)}.",
                "Round the sites with the allocation that is written.",
            )
        tensors |= rounded.stored(site.name, by_columns=site.sparse)
    return tensors


def _make(folder: Path) -> bool:
    try:
        existed = folder.is_dir()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"The folder {folder} cannot be made: {error.strerror or error}."
        raise ArtifactError(problem, "Choose a folder that can be written.") from error
    return not existed


# ---- reading ---------------------------------------------------------------------------------------------------


def read(folder: Path | str) -> Artifact:
    """Read an artifact, by its folder or its model file, every byte of it checked.

    Raises ArtifactError, which says what is wrong where.
    """
    folder = packed.folder_of(folder)
    config, entry = packed.read_config(folder)
    manifest, path = packed.read_manifest(folder, entry), folder / MODEL
    with reading(path):
        if file_digest(path) != entry["sha256"]:
            raise ArtifactError(f"The sha256 of {path} is not the one in {CONFIG}.", ALTERED)
        quantized = dict(_read_sites(path, manifest))
    tokenizer = _read_tokenizer(folder / TOKENIZER, entry.get("tokenizer_sha256"))
    return Artifact(folder, config, tokenizer, quantized, manifest, entry["sha256"], entry["bytes"])


def verify(folder: Path | str) -> list[str]:
    """Read an artifact and say what was checked, one line each. Raises ArtifactError at the first fault."""
    artifact = read(folder)
    stored = artifact.manifest.stored()
    return [
        f"{CONFIG}: as it was written",
        f"{TOKENIZER}: {'as it was written' if artifact.tokenizer_json is not None else 'none, as it should be'}",
        f"{MODEL}: {artifact.file_bytes:,} bytes, sha256 {artifact.sha256}",
        f"header: follows from the allocation, {len(artifact.quantized)} sites in {len(stored)} tensors",
        f"data: {sum(map(data_bytes, stored)):,} bytes, scales positive, numbers finite, unused bits zero",
    ]


def _read_sites(path: Path, manifest: Manifest) -> Iterator[tuple[str, QuantizedTensor]]:
    groups = [stored_tensors(*site, name) for name, site in manifest.sites.items()]
    for (name, site), parts in zip(manifest.sites.items(), read_tensors(path, groups), strict=True):
        yield name, QuantizedTensor.from_stored(*site, name, parts, by_columns=name in manifest.by_columns)


def _read_tokenizer(path: Path, digest: object) -> str | None:
    if digest is None and not path.exists():
        return None
    content = read_bytes(path, LARGEST_JSON)
    if hashlib.sha256(content).hexdigest() != digest:
        raise ArtifactError(f"{path} is not as it was written.", ALTERED)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not UTF-8.", ALTERED) from error
