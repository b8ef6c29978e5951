"""Open whatever names a model: a file, a folder, a packed artifact, a shipped checkpoint, or a Hub id."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from qslm import artifact, folders
from qslm.data.tokenizer import describe_tokenizer, encode, load_tokenizer, parse_tokenizer
from qslm.data.wikitext2 import load_wikitext2
from qslm.errors import DataError
from qslm.loading.locating import find
from qslm.loading.pretrained import Network, load_pretrained, open_pretrained
from qslm.models.checkpoint import load_spikegpt, read_state
from qslm.models.config import TRANSFORMERS
from qslm.models.spikegpt import SpikeGPT
from qslm.progress import SILENT, Progress
from qslm.spiking.placing import SPIKING, place

CALIBRATION_TOKENS = 2048


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model ready to run, and what is known of the file it came from."""

    name: str
    model: SpikeGPT | Network  # evaluation mode, float32, on a GPU where there is one
    tokenizer: Tokenizer | None
    digest: str  # sha256 of the weight file and of what changes its meaning
    file_bytes: int
    allocation: str | None = None  # canonical JSON, for a packed artifact
    source: str | None = None  # what it was opened by: a path, a shipped name, a Hub id
    spiking: dict[str, Any] | None = None  # how its layers read spike counts (`qslm.spiking.placing`)

    def __post_init__(self) -> None:
        """Let the network itself say how large its file is: `evaluate` is given no more than the network."""
        vars(self.model)["file_bytes"] = self.file_bytes

    @property
    def config(self) -> dict[str, Any]:
        """What `config.json` says of the model."""
        return self.model.config.to_dict() | ({SPIKING: self.spiking} if self.spiking else {})


def load_model(source: str | Path, **options: Any) -> SpikeGPT | Network:
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

    A GGUF file, or a folder whose `config.json` names a model type of `transformers`, is opened by that (KINDS of
    `models.pretrained`).

    `tokenizer` names a `tokenizer.json` for checkpoints that carry none. `binary_embedding` "auto" is what the
    checkpoint's `config.json` says; else the one of lower loss on calibration text (of WikiText-2 in the folder
    `data`, or of the other sources); else true (derived: the published training code binarizes). Raises
    CheckpointError or DataError with the remedy.
    """
    found = find(source, binary_embedding)
    given = load_tokenizer(tokenizer) if tokenizer is not None else None
    if found.packed:
        return replace(_open_artifact(found.weights.parent, given), source=str(source))
    if found.pretrained:
        return _open_pretrained(found.path, given, str(source))
    weights, config, beside = found.weights, found.config, found.weights.with_name(folders.TOKENIZER)
    words = _tokenizer(given, load_tokenizer(beside) if beside.is_file() else None, weights)
    state = read_state(weights)
    model = load_spikegpt(state, config, origin=str(weights))
    if words is not None and 2 * words.get_vocab_size() < model.config.vocabulary_size:
        progress.message(
            f"The tokenizer has {words.get_vocab_size():,} tokens and the model's vocabulary "
            f"{model.config.vocabulary_size:,}: is it the one that the model was trained with?"
        )
    if "binary_embedding" not in config and words is not None and model.config.classes is None:
        model = _likelier_embedding(model, state, config, words, str(weights), data, progress)
    meaning = json.dumps({"binary_embedding": model.config.binary_embedding})
    digest = _digest(weights, meaning)
    model = model.to(_device())
    return Checkpoint(found.path.name, model, words, digest, weights.stat().st_size, source=str(source))


def _device() -> torch.device:
    """A GPU where PyTorch sees one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _open_pretrained(path: Path, tokenizer: Tokenizer | None, source: str) -> Checkpoint:
    opened = open_pretrained(path)
    words, model = _tokenizer(tokenizer, opened.tokenizer, path), opened.model.to(_device())
    return Checkpoint(path.name, model, words, opened.digest, opened.file_bytes, source=source)


def _open_artifact(folder: Path, tokenizer: Tokenizer | None) -> Checkpoint:
    packed = artifact.read(folder)
    model = _network(packed, str(folder))
    text, origin = packed.tokenizer_json, folder / artifact.TOKENIZER
    tokenizer = _tokenizer(tokenizer, None if text is None else parse_tokenizer(text, str(origin)), folder)
    return Checkpoint(
        *(folder.name, model, tokenizer, packed.sha256, packed.file_bytes, packed.allocation_json),
        spiking=packed.config.get(SPIKING),
    )


def _network(packed: artifact.Artifact, origin: str) -> SpikeGPT | Network:
    """The network that was packed, with its weights as numbers, and spiking layers where it was converted."""
    state = packed.state_dict()
    if packed.config["architecture"] == TRANSFORMERS:
        model: SpikeGPT | Network = load_pretrained(state, packed.config, origin=origin)
    else:
        model = load_spikegpt(state, packed.config, origin=origin)
    if SPIKING not in packed.config and not any(site.format.activations for site in packed.quantized.values()):
        return model.to(_device())
    place(model, packed.config.get(SPIKING), packed.quantized, origin)
    return model  # spiking layers run on the CPU


def _tokenizer(given: Tokenizer | None, own: Tokenizer | None, origin: Path) -> Tokenizer | None:
    """The tokenizer that is given, or that lies beside the weights. Raises DataError where they are not the same."""
    if given is not None and own is not None and given.get_vocab() != own.get_vocab():
        raise DataError(
            f"{origin} carries its own tokenizer, of {describe_tokenizer(own)}; the given one is another, of "
            f"{describe_tokenizer(given)}.",
            "Leave the tokenizer out (--tokenizer is for checkpoints that carry none).",
        )
    return given or own


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
