"""What lives in a folder, and who may write there: one table for trainings, studies and packed models.

Loads without PyTorch, so that the command line refuses a folder before anything else.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from qslm.errors import QslmError

MODEL, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"  # of a packed model, or a trained one
ENTRY = "qslm"  # our key in config.json, and in the metadata of the model file
STATE, RECORD, CURVE = "training.pt", "training.json", "loss.png"  # of a training
STUDY, LEDGER, ARTIFACT = "study.json", "ledger.sqlite", "artifact"  # of a run folder
IMAGE, HEADER, ASSEMBLY = "model.bin", "model.h", "model.S"  # of an export
EXPORTED = b"// Made by `qslm export`"  # which the header begins with
GGUF = ".gguf"  # weights that transformers opens
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")  # of weights
LARGEST_JSON = 1 << 28  # bytes

Kind: TypeAlias = Literal["nothing", "checkpoint", "artifact", "run", "training", "export", "foreign"]
Writer: TypeAlias = Literal["training", "study", "packing", "exporting"]

MAY_WRITE: Mapping[Writer, tuple[Kind, ...]] = {
    "training": ("nothing", "training"),  # which its state then says to be the same one
    "study": ("nothing", "run", "foreign"),  # whose ledger then says the same; it writes no file of a model's names
    "packing": ("nothing", "artifact"),  # which is replaced
    "exporting": ("nothing", "export"),  # which is replaced
}


@dataclass(frozen=True)
class Contents:
    """What lives in a folder, and the files by which it is known.

    A "run" is the folder of a study, a "training" that of one that goes on or has ended, an "artifact" a packed model,
    an "export" one as an image for a device, a "checkpoint" any other weights; "foreign" are files of a model without
    its weights. Where several live together, it is the first of these. "nothing" is no folder, an empty one, or one
    with other files.
    """

    kind: Kind
    files: tuple[str, ...] = ()


def contents(folder: Path) -> Contents:
    """Look what lives in a folder. Raises OSError when it cannot be read."""
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    weights = tuple(name for name in names if Path(name).suffix in SUFFIXES)
    if run := tuple(name for name in names if name in (STUDY, LEDGER)):
        return Contents("run", run)
    if STATE in names:
        return Contents("training", (STATE,))
    if is_packed(folder):
        return Contents("artifact", tuple(name for name in names if name in (CONFIG, MODEL)))
    if is_export(folder):
        return Contents("export", tuple(name for name in names if name in (IMAGE, HEADER, ASSEMBLY)))
    if weights:
        return Contents("checkpoint", weights)
    parts = tuple(name for name in names if name in (CONFIG, TOKENIZER, RECORD, CURVE))
    return Contents("foreign", parts) if parts else Contents("nothing")


def is_artifact(path: Path | str) -> bool:
    """Whether `path` is a folder whose config.json says that qslm wrote it; it may be damaged all the same."""
    config = Path(path) / CONFIG
    try:
        whole = config.is_file() and config.stat().st_size <= LARGEST_JSON
        return whole and isinstance(_object(config.read_bytes()).get(ENTRY), dict)
    except OSError:
        return False


def is_packed(path: Path | str) -> bool:
    """Whether `path` is a folder with a packed model in it, also where its config.json is damaged or missing."""
    return is_artifact(path) or has_metadata(Path(path) / MODEL)


def is_export(folder: Path) -> bool:
    """Whether `qslm export` wrote the header in a folder."""
    try:
        if not (folder / HEADER).is_file():
            return False
        with (folder / HEADER).open("rb") as file:
            return file.read(len(EXPORTED)) == EXPORTED
    except OSError:
        return False


def has_metadata(model: Path) -> bool:
    """Whether the header of a safetensors file has metadata of qslm."""
    try:
        if not model.is_file():
            return False
        with model.open("rb") as file:
            length, room = int.from_bytes(file.read(8), "little"), model.stat().st_size - 8
            metadata = _object(file.read(length)).get("__metadata__") if length <= min(room, LARGEST_JSON) else None
    except OSError:
        return False
    text = metadata.get(ENTRY) if isinstance(metadata, dict) else None
    return isinstance(text, str) and bool(text)


def named(output: Path | str) -> Path:
    """The path of a folder that is written to. Raises QslmError on an empty one, which would be this folder."""
    if not str(output):
        raise QslmError("The name of the output folder is empty.", "Name a folder, such as runs/own.")
    return Path(output)


def check(output: Path | str, writer: Writer, error: type[QslmError] = QslmError) -> Path:
    """The folder `output`, where `writer` may write by the table. Raises `error` where it may not."""
    try:
        return _check(named(output), writer)
    except QslmError as refusal:
        raise error(refusal.problem, refusal.remedy) from refusal


def check_ahead(output: Path | str, writer: Writer) -> None:
    """Do as `check`, and refuse a folder that cannot be made or written, before any work is done for it.

    A file is tried in it, or in the part of the path that is there: permissions alone do not tell of /proc. Raises
    QslmError.
    """
    there = folder = named(output)
    try:
        while not there.exists():
            there = there.parent
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise QslmError(
            f"The folder {folder} cannot be written: {error.strerror or error} ({there}).",
            "Choose a folder that can be written.",
        ) from error
    check(folder, writer)


def _check(folder: Path, writer: Writer) -> Path:
    try:
        found = contents(folder)
    except OSError as error:
        raise QslmError(
            f"The folder {folder} cannot be read: {error.strerror or error}.", "Check it, or name another folder."
        ) from error
    if found.kind not in MAY_WRITE[writer]:
        raise _refusal(folder, found)
    if writer == "study":
        _check(folder / ARTIFACT, "packing")
    return folder


def _refusal(folder: Path, found: Contents) -> QslmError:
    """What lives in a folder, as the reason not to write there."""
    another = "Name another folder, such as runs/own."
    match found.kind:
        case "run":
            return QslmError(f"{folder} is the run folder of a study.", another)
        case "training":
            return QslmError(f"{folder} is the folder of a training, which keeps its {STATE} there.", another)
        case "artifact":
            return QslmError(f"{folder} is the folder of a packed model.", another)
        case "export":
            return QslmError(f"{folder} is the folder of an exported model.", another)
    moved = "Name another folder, or move these files away."
    if found.kind == "checkpoint":
        return QslmError(f"{folder} is the folder of a checkpoint, {found.files[0]}.", moved)
    return QslmError(f"{folder} holds files of another model, {', '.join(found.files)}.", moved)


def _object(text: bytes) -> dict[str, Any]:
    """A JSON object; anything else, NaN and very deep nesting included, is an empty one."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        content = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
