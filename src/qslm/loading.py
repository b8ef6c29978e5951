"""Open whatever names a model: a file, a folder, a packed artifact, a shipped checkpoint, or a Hub id."""

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from qslm import artifact, folders
from qslm.data.tokenizer import describe_tokenizer, encode, load_tokenizer, parse_tokenizer
from qslm.data.wikitext2 import load_wikitext2
from qslm.errors import CheckpointError, DataError
from qslm.folders import SUFFIXES
from qslm.models.checkpoint import infer_config, load_spikegpt, make_skeleton, read_state
from qslm.models.spikegpt import SpikeGPT, SpikeGPTConfig
from qslm.progress import SILENT, Progress

SHIPPED = Path(__file__).parent / "checkpoints"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_FILES = ("*.safetensors", "*.pth", "*.pt", "*.bin", "config.json", "tokenizer.json")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model.pth")
CALIBRATION_TOKENS = 2048
BINARY_EMBEDDING = ("auto", "true", "false")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model ready to run, and what is known of the file it came from."""

    name: str
    model: SpikeGPT  # evaluation mode, float32, on a GPU where there is one
    tokenizer: Tokenizer | None
    digest: str  # sha256 of the weight file and of what changes its meaning
    file_bytes: int
    allocation: str | None = None  # canonical JSON, for a packed artifact
    source: str | None = None  # what it was opened by: a path, a shipped name, a Hub id

    def __post_init__(self) -> None:
        """Let the network itself say how large its file is: `evaluate` is given no more than the network."""
        vars(self.model)["file_bytes"] = self.file_bytes

    @property
    def config(self) -> dict[str, Any]:
        """What `config.json` says of the model."""
        return self.model.config.to_dict()


def load_model(source: str | Path, **options: Any) -> SpikeGPT:
    """Return the network of `load_checkpoint`, in evaluation mode: ids (batch, tokens) to logits.

    Its attribute `file_bytes` is the size of the model file that it was opened from.

    A language model gives logits (batch, tokens, vocabulary), a classifier (batch, classes).
    """
    return load_checkpoint(source, **options).model


def load_checkpoint(
    source: str | Path,
    *,
    tokenizer: str | Path | None = None,
    binary_embedding: str | bool = "auto",
    data: Path | str | None = None,
    progress: Progress = SILENT,
) -> Checkpoint:
    """Open a checkpoint file or folder, a packed artifact, the name of a shipped checkpoint, or a Hub id.

    `tokenizer` names a `tokenizer.json` for checkpoints that carry none. `binary_embedding` "auto" is what the
    checkpoint's `config.json` says; else the one of lower loss on calibration text (of WikiText-2 in the folder
    `data`, or of the other sources); else true (derived: the published training code binarizes). Raises
    CheckpointError or DataError with the remedy.
    """
    choice = str(binary_embedding).lower()
    if choice not in BINARY_EMBEDDING:
        raise CheckpointError(
            f"binary_embedding is {binary_embedding!r}.", f"Choose one of {', '.join(BINARY_EMBEDDING)}."
        )
    path = locate(source)
    given = load_tokenizer(tokenizer) if tokenizer is not None else None
    folder = path.parent if path.name == artifact.MODEL else path
    if folders.is_packed(folder):
        return replace(_open_artifact(folder, given, choice), source=str(source))
    weights = _weight_file(path)
    config, beside = _read_config(weights.with_name("config.json")), weights.with_name("tokenizer.json")
    found = _tokenizer(given, load_tokenizer(beside) if beside.is_file() else None, weights)
    state = read_state(weights)
    if choice != "auto":
        config = {**config, "binary_embedding": choice == "true"}
    model = load_spikegpt(state, config, origin=str(weights))
    if found is not None and 2 * found.get_vocab_size() < model.config.vocabulary_size:
        progress.message(
            f"The tokenizer has {found.get_vocab_size():,} tokens and the model's vocabulary "
            f"{model.config.vocabulary_size:,}: is it the one that the model was trained with?"
        )
    if "binary_embedding" not in config and found is not None and model.config.classes is None:
        model = _likelier_embedding(model, state, config, found, str(weights), data, progress)
    meaning = json.dumps({"binary_embedding": model.config.binary_embedding})
    digest = _digest(weights, meaning)
    model = model.to(_device())
    return Checkpoint(path.name, model, found, digest, weights.stat().st_size, source=str(source))


def load_skeleton(source: str | Path) -> SpikeGPT:
    """Return the network of `source` without its weights (on PyTorch's meta device): at once, however large it is.

    An embedding is taken as binarized where `config.json` does not say otherwise. Raises CheckpointError.
    """
    path = locate(source)
    folder = path.parent if path.name == artifact.MODEL else path
    if folders.is_packed(folder):
        config = SpikeGPTConfig.from_dict(_spikegpt(artifact.read_config(folder), folder))
    else:
        weights = _weight_file(path)
        config = infer_config(read_state(weights), _read_config(weights.with_name("config.json")), str(weights))
    return make_skeleton(config)


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


def _or_shipped(*others: str) -> str:
    """The end of a remedy that names what else may be given, and the shipped checkpoints if there are any."""
    names = shipped_names()
    choices = [*others, *([f"one of: {', '.join(names)}"] if names else [])]
    return "".join(f", or {choice}" if choice is choices[-1] else f", {choice}" for choice in choices)


def _device() -> torch.device:
    """A GPU where PyTorch sees one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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


def _weight_file(path: Path) -> Path:
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


def _run_folder(path: Path) -> CheckpointError:
    packed = path / folders.ARTIFACT
    if folders.is_artifact(packed):
        return CheckpointError(f"{path} is the run folder of a study.", f"Give the packed model in it: {packed}.")
    return CheckpointError(
        f"{path} is the run folder of a study that has packed no model.",
        "Give the checkpoint, or let the study end: the same command goes on where it was.",
    )


def _read_config(path: Path) -> dict[str, Any]:
    """Return `config.json` when it is ours, else nothing; other programs put theirs beside the weights as well."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}.", "Repair or remove it.") from error
    return config if isinstance(config, dict) and config.get("architecture") == "spikegpt" else {}


def _open_artifact(folder: Path, tokenizer: Tokenizer | None, binary_embedding: str) -> Checkpoint:
    packed = artifact.read(folder)
    model = load_spikegpt(packed.state_dict(), _spikegpt(packed.config, folder), origin=str(folder))
    packed_as = str(model.config.binary_embedding).lower()
    if binary_embedding not in ("auto", packed_as):
        raise CheckpointError(
            f"{folder} was packed and measured with binary_embedding {packed_as}; {binary_embedding} is another.",
            "Leave --binary-embedding out, or pack the checkpoint anew with it.",
        )
    text, origin = packed.tokenizer_json, folder / artifact.TOKENIZER
    tokenizer = _tokenizer(tokenizer, None if text is None else parse_tokenizer(text, str(origin)), folder)
    model = model.to(_device())
    return Checkpoint(folder.name, model, tokenizer, packed.sha256, packed.file_bytes, packed.allocation_json)


def _tokenizer(given: Tokenizer | None, own: Tokenizer | None, origin: Path) -> Tokenizer | None:
    """The tokenizer that is given, or that lies beside the weights. Raises DataError where they are not the same."""
    if given is not None and own is not None and given.get_vocab() != own.get_vocab():
        raise DataError(
            f"{origin} carries its own tokenizer, of {describe_tokenizer(own)}; the given one is another, of "
            f"{describe_tokenizer(given)}.",
            "Leave the tokenizer out (--tokenizer is for checkpoints that carry none).",
        )
    return given or own


def _spikegpt(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The config of a packed SpikeGPT. Raises CheckpointError where another network was packed."""
    architecture = config.get("architecture")
    if architecture != "spikegpt":
        raise CheckpointError(
            f"{folder} is a packed model of another network, {str(architecture)[:80]}, and only a SpikeGPT is built.",
            f"Read its weights in Python: qslm.artifact.read({str(folder)!r}).state_dict(), for your own network.",
        )
    return config


def _likelier_embedding(
    model: SpikeGPT,
    state: Mapping[str, Tensor],
    config: dict[str, Any],
    tokenizer: Tokenizer,
    origin: str,
    data: Path | str | None,
    progress: Progress,
) -> SpikeGPT:
    """Return the network with a binarized or a real embedding, whichever predicts calibration text better."""
    try:
        text = load_wikitext2(data, progress).calibrate
    except DataError as error:
        progress.message(f"Embedding: taken as binarized, as there is no calibration text. {error.problem}")
        return model
    ids = encode(tokenizer, text[: 16 * CALIBRATION_TOKENS])[: CALIBRATION_TOKENS + 1]
    largest, known = int(ids.max()), model.config.vocabulary_size
    if largest >= known:
        progress.message(f"Embedding: taken as binarized, as the tokenizer's id {largest:,} is none of {known:,}.")
        return model
    real = load_spikegpt(state, {**config, "binary_embedding": False}, origin=origin)
    losses = {candidate: _loss(candidate, ids) for candidate in (model, real)}
    chosen = min(losses, key=lambda candidate: losses[candidate])
    progress.message(
        f"Embedding: binarized {losses[model]:.3f}, real {losses[real]:.3f} nats per token on {len(ids) - 1} tokens of "
        f"calibration text; taken as {'binarized' if chosen is model else 'real'}."
    )
    return chosen


def _loss(model: SpikeGPT, ids: Tensor) -> float:
    """Mean nats per token of ids (tokens,), in windows of the model's context."""
    length, total = model.config.context_length, 0.0
    with torch.inference_mode():
        for window, targets in zip(ids[:-1].split(length), ids[1:].split(length), strict=True):
            total += float(torch.nn.functional.cross_entropy(model(window[None])[0], targets, reduction="sum"))
    return total / (len(ids) - 1)


def _digest(weights: Path, meaning: str) -> str:
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(meaning.encode())
    return digest.hexdigest()
