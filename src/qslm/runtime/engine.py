"""The native engine: a packed model runs where it lies, without being unpacked (`native/graphs/model.h`).

Activations are rounded to 8-bit integers with one scale a token and accumulated exactly; so its logits differ a little
from those of PyTorch on the same weights, which `qslm eval --engine native` measures.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qslm import _native, folders, packed
from qslm.errors import ArtifactError, QslmError, TaskError
from qslm.formats import data_bytes, stored_tensors
from qslm.formats.manifest import Manifest
from qslm.formats.reading import file_digest, reading

EMBEDDINGS = ("emb.weight", "network.model.embed_tokens.weight")
PIECE = 1024  # tokens of a prompt that are read in one call
CHUNK, MOST_CHUNK = 32, 4096  # tokens that go through the network together
MOST_THREADS = 1024

_REMEDY = "Pack it again with this qslm, or run it by --engine torch."


class Engine:
    """A packed model of `folder`, its state, and threads to run it on.

    chunk: tokens of a text that go through the network together; the results do not depend on it, nor on threads
    (default: the CPUs that this process may use). floats: a checking mode, in which activations are not rounded.
    """

    def __init__(
        self, folder: Path | str, *, threads: int | None = None, chunk: int = CHUNK, floats: bool = False
    ) -> None:
        """Open a packed model.

        Raises ArtifactError where it is damaged, or no model that the engine runs, and QslmError where chunk or threads
        are none that it takes.
        """
        threads = len(os.sched_getaffinity(0)) if threads is None else threads
        for name, value, most in (("chunk", chunk, MOST_CHUNK), ("threads", threads, MOST_THREADS)):
            if not 1 <= value <= most:
                raise QslmError(
                    f"{name} is {value:,}, which is none of 1 to {most:,}.",
                    "Choose a number in that range, or leave it out.",
                )
        folder = packed.folder_of(folder)
        self.config, entry = packed.read_config(folder)
        manifest = packed.read_manifest(folder, entry)
        path = folder / folders.MODEL
        with reading(path):
            if file_digest(path) != entry["sha256"]:
                raise ArtifactError(f"The sha256 of {path} is not the one in {folders.CONFIG}.", packed.ALTERED)
        try:
            self._engine = _native.Engine(str(path), json.dumps(self.config), chunk, threads)
        except RuntimeError as error:
            raise ArtifactError(f"{folder}: {str(error).rstrip('.')}.", _REMEDY) from error
        self._engine.use_floats(floats)
        self.vocabulary_size = self._engine.sizes["vocabulary_size"]
        self.classes = self._engine.sizes["classes"] or None

        self.bytes_per_token = self.weight_bytes - _unread(manifest)
        """Bytes of weights that a token reads at most: all but those of an embedding of its own."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors of the file."""
        return self._engine.weight_bytes

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory that it takes beside the file: state, buffers, vectors and the table of sites."""
        return self._engine.memory_bytes

    @property
    def arena_bytes(self) -> int:
        """Bytes of memory that loading it takes at most, also where pointers are shorter than here."""
        return self._engine.arena_bytes

    @property
    def state_bytes(self) -> int:
        """Bytes of what is carried from token to token."""
        return self._engine.state_bytes

    def advance(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Go on by some tokens: the logits (vocabulary,) of the last. Raises TaskError where an id is no token."""
        logits = np.empty(self.vocabulary_size, np.float32)
        self._call(self._engine.advance, ids, logits)
        return logits

    def advance_all(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Go on by some tokens: the logits (tokens, vocabulary) of all."""
        logits = np.empty((len(ids), self.vocabulary_size), np.float32)
        self._call(self._engine.advance_all, ids, logits)
        return logits

    def classify(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits (classes,) of a text, from the empty state. Raises TaskError for a language model."""
        logits = np.empty(self.classes or 0, np.float32)
        self._call(self._engine.classify, ids, logits)
        return logits

    def reset(self) -> None:
        """Go back to the empty state."""
        self._engine.reset()

    def save(self) -> bytes:
        """What is carried from token to token."""
        return self._engine.save()

    def restore(self, state: bytes) -> None:
        """Go on from a state that `save` gave. Raises ArtifactError where it is none of this model."""
        if not self._engine.restore(state):
            raise ArtifactError(f"The {len(state):,} bytes are no state of this model.", "Give what Engine.save gave.")

    def trace(self, forced: NDArray[np.float32] | None, potentials: NDArray[np.float32] | None) -> None:
        """For tests: spikes to emit, and where potentials go, (tokens, neurons, width) of the tokens to come."""
        self._traced = forced, potentials  # they must live on
        self._engine.trace(forced, potentials)

    def stream(
        self, ids: Sequence[int], tokens: int, temperature: float, top_p: float, seed: int, end: int | None = None
    ) -> Iterator[int]:
        """The ids that follow `ids` from the empty state, until `end` or `tokens` of them."""
        random = seed % 2**64
        self.reset()
        for start in range(0, max(len(ids), 1), PIECE):  # between which Ctrl-C is heard
            logits = self.advance(ids[start : start + PIECE])
        for _ in range(tokens):
            token, random = _native.draw(logits, temperature, top_p, random)
            if token == end:
                return
            yield token
            logits = self.advance([token])

    def _call(self, method: Any, ids: Sequence[int], logits: NDArray[np.float32]) -> None:
        whole, remedy = np.asarray(ids), "Use the model's own tokenizer, and the task that it was made for."
        if whole.ndim != 1 or (whole.size > 0 and whole.dtype.kind not in "iu"):
            raise TaskError(f"The tokens are of shape {whole.shape} and type {whole.dtype}, not ids in a row.", remedy)
        if whole.size > 0 and (beyond := max(int(whole.max()), -int(whole.min()))) >= 2**31:
            raise TaskError(f"An id of size {beyond:,} is none of {self.vocabulary_size:,} tokens.", remedy)
        try:
            method(whole.astype(np.int32), logits)
        except ValueError as error:
            raise TaskError(f"{str(error).rstrip('.')}.", remedy) from error


def _unread(manifest: Manifest) -> int:
    """Bytes of the embedding but for a row, where no other layer shares it."""
    names = [name for name in EMBEDDINGS if name in manifest.sites and name not in manifest.aliases.values()]
    return sum(
        sum(map(data_bytes, stored_tensors(format, shape, name))) * (shape[0] - 1) // shape[0]
        for name in names
        for format, shape in [manifest.sites[name]]
    )


class EngineNetwork(nn.Module):
    """A packed model as a task sees it: its logits are the engine's, each window and sentence from the empty state.

    network: the same model in PyTorch, which says what it is made of.
    """

    def __init__(self, engine: Engine, network: nn.Module) -> None:
        super().__init__()
        self.engine, self.network = engine, network
        self.config = network.config

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (windows, tokens, vocabulary) of ids (windows, tokens), or (sentences, classes) of a classifier."""
        if self.engine.classes is not None:
            real = ids >= 0 if mask is None else mask
            texts = [one[its].tolist() for one, its in zip(ids, real, strict=True)]
            return torch.from_numpy(np.stack([self.engine.classify(text) for text in texts]))
        return torch.from_numpy(np.stack([self._window(one.tolist()) for one in ids]))

    def _window(self, ids: list[int]) -> NDArray[np.float32]:
        self.engine.reset()
        return self.engine.advance_all(ids)
