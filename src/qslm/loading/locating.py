"""Where the weights are that a path, the name of a shipped checkpoint, or a Hub id stands for."""

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qslm import folders, packed
from qslm.errors import CheckpointError
from qslm.folders import SUFFIXES
from qslm.models.config import TRANSFORMERS

SHIPPED = Path(__file__).parents[1] / "checkpoints"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_FILES = ("*.safetensors", "*.pth", "*.pt", "*.bin", "*.safetensors.index.json", "config.json", "tokenizer.json")
BINARY_EMBEDDING = ("auto", "true", "false")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model.pth")


@dataclass(frozen=True)
class Found:
    """The weights that a source stands for, and what config.json beside them says where it is ours."""

    path: Path  # what was named
    weights: Path  # a folder where transformers opens it
    config: dict[str, Any]
    packed: bool
    pretrained: bool = False  # whether it is a network of transformers, not a SpikeGPT


def find(source: str | Path, binary_embedding: str | bool = "auto") -> Found:
    """Find the weights of a path, the name of a shipped checkpoint, or a Hub id; a config that is told prevails.

    Raises CheckpointError, or ArtifactError for a packed model.
    """
    choice = str(binary_embedding).lower()
    if choice not in BINARY_EMBEDDING:
        raise CheckpointError(
            f"binary_embedding is {binary_embedding!r}.", f"Choose one of {', '.join(BINARY_EMBEDDING)}."
        )
    path = locate(source)
    folder = packed.folder_of(path)
    if folders.is_packed(folder):
        config = _packed_config(folder, choice)
        pretrained = config["architecture"] == TRANSFORMERS
        return Found(path, folder / folders.MODEL, config, packed=True, pretrained=pretrained)
    if _is_pretrained(path):
        return Found(path, path, {}, packed=False, pretrained=True)
    weights = _weight_file(path)
    config = _read_config(weights.with_name(folders.CONFIG))
    told = {} if choice == "auto" else {"binary_embedding": choice == "true"}
    return Found(path, weights, {**config, **told}, packed=False)


def _is_pretrained(path: Path) -> bool:
    """Whether transformers opens it: a GGUF file, or a folder of safetensors whose config.json names a model type."""
    if path.is_file():
        return path.suffix == folders.GGUF
    config, kinds = _json(path / folders.CONFIG), {file.suffix for file in path.iterdir()}
    return "model_type" in config and "architecture" not in config and not kinds & {".pth", ".pt"}


def _packed_config(folder: Path, choice: str) -> dict[str, Any]:
    """The config of a packed network that is known. Raises CheckpointError where another one, or form, was packed."""
    config, _ = packed.read_config(folder)
    architecture = config.get("architecture")
    if architecture == TRANSFORMERS:
        return config
    if architecture != "spikegpt":
        raise CheckpointError(
            f"{folder} is a packed model of another network, {str(architecture)[:80]}, which is not known here.",
            f"Read its weights in Python: qslm.artifact.read({str(folder)!r}).state_dict(), for your own network.",
        )
    packed_as = str(config.get("binary_embedding", True)).lower()
    if choice not in ("auto", packed_as):
        raise CheckpointError(
            f"{folder} was packed and measured with binary_embedding {packed_as}; {choice} is another.",
            "Leave --binary-embedding out, or pack the checkpoint anew with it.",
        )
    return config


def locate(source: str | Path) -> Path:
    """Return the file or folder that `source` names; fetches it when it is a Hub id.

    Raises CheckpointError when there is none, naming the shipped checkpoints.
    """
    path = Path(source)
    if not str(source).strip():
        raise CheckpointError("The name of the checkpoint is empty.", f"Give a path{_or_shipped('a Hub id')}.")
    with suppress(OSError):  # of a name that is too long for the file system
        if path.exists():
            return path
        if (SHIPPED / str(source) / "model.safetensors").is_file():
            return SHIPPED / str(source)
    problem = f"There is no checkpoint {str(source)!r}: no such file or folder, and none of that name is shipped"
    if HUB_ID.fullmatch(str(source)) and path.suffix not in SUFFIXES:
        return _fetch(str(source), problem)
    raise CheckpointError(f"{problem}.", f"Give a path{_or_shipped('a Hub id')}.")


def shipped_names() -> list[str]:
    """Return the names of the checkpoints that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/model.safetensors"))


def _weight_file(path: Path) -> Path:
    """Return the one weight file of a folder, or the file itself. Raises CheckpointError."""
    if path.is_file():
        return path
    if folders.contents(path).kind == "run":
        raise _run_folder(path)
    named = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
    found = named[:1] or sorted(
        file for file in path.iterdir() if file.suffix in SUFFIXES and file.name != folders.STATE
    )
    if len(found) != 1:
        listed = ", ".join(file.name for file in found) or "none"
        raise CheckpointError(
            f"The folder {path} should hold one weight file; it holds {listed}.", "Name the file itself."
        )
    return found[0]


def _read_config(path: Path) -> dict[str, Any]:
    """Return `config.json` when it is ours, else nothing; other programs put theirs beside the weights as well."""
    config = _json(path)
    return config if config.get("architecture") == "spikegpt" else {}


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; nothing where there is no file, or it holds something else. Raises CheckpointError."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}.", "Repair or remove it.") from error
    return content if isinstance(content, dict) else {}


def _or_shipped(*others: str) -> str:
    """The end of a remedy that names what else may be given, and the shipped checkpoints if there are any."""
    names = shipped_names()
    choices = [*others, *([f"one of: {', '.join(names)}"] if names else [])]
    return "".join(f", or {choice}" if choice is choices[-1] else f", {choice}" for choice in choices)


def _fetch(hub_id: str, problem: str) -> Path:
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(hub_id, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the Hub's client fails in many ways: no network, no such id, no permission
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{problem}, and the Hub did not give it: {reason}.",
            f"Check the name and the network, or give a path{_or_shipped()}.",
        ) from error


def _run_folder(path: Path) -> CheckpointError:
    model = path / folders.ARTIFACT
    if folders.is_artifact(model):
        return CheckpointError(f"{path} is the run folder of a study.", f"Give the packed model in it: {model}.")
    return CheckpointError(
        f"{path} is the run folder of a study that has packed no model.",
        "Give the checkpoint, or let the study end: the same command goes on where it was.",
    )
