"""What is studied: a loaded checkpoint, or any network."""

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

from tokenizers import Tokenizer
from torch import Tensor, nn

from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.digest import update_digest
from qslm.errors import StudyError
from qslm.spiking.layer import RoundedLayer


class LoadedCheckpoint(Protocol):
    """What a study asks of a checkpoint; `qslm.loading.checkpoint.Checkpoint` is one."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def model(self) -> nn.Module: ...  # noqa: D102
    @property
    def tokenizer(self) -> Tokenizer | None: ...  # noqa: D102
    @property
    def config(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102
    @property
    def file_bytes(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class Subject:
    """A network with its name, its digest, and the bytes of the file that it came from."""

    name: str
    model: nn.Module
    digest: str
    file_bytes: int
    config: dict[str, Any]
    tokenizer_json: str | None
    source: str | None = None  # what the checkpoint was opened by, where it says so

    @classmethod
    def of(cls, checkpoint: LoadedCheckpoint | nn.Module) -> "Subject":
        """Take a checkpoint, or a bare network: its digest is that of its weights, its file the float32 one.

        Raises StudyError where it is spiking: its layers hold integers, which are no sites.
        """
        network = checkpoint if isinstance(checkpoint, nn.Module) else checkpoint.model
        if any(isinstance(module, RoundedLayer) for module in network.modules()):
            raise StudyError(
                f"{type(network).__name__} has spiking layers, whose integer weights are not rounded again.",
                "Study the network that it was converted from.",
            )
        if isinstance(checkpoint, nn.Module):
            name = type(checkpoint).__name__
            file_bytes = Allocation.float32(find_anatomy(checkpoint)).footprint().file
            config = {"architecture": name}
            return cls(name, checkpoint, weights_digest(checkpoint), file_bytes, config, None)
        tokenizer = None if checkpoint.tokenizer is None else checkpoint.tokenizer.to_str()
        return cls(
            checkpoint.name,
            checkpoint.model,
            checkpoint.digest,
            checkpoint.file_bytes,
            dict(checkpoint.config),
            tokenizer,
            getattr(checkpoint, "source", None),
        )

    def to_dict(self) -> dict[str, Any]:
        """The subject as study.json describes it."""
        names = {"name": self.name, "source": self.source, "digest": self.digest}
        return {**names, "bytes": self.file_bytes, "config": self.config}


def weights_digest(model: nn.Module) -> str:
    """The sha256 over the class and the state dict of a network: names, types, shapes and bits."""
    digest = hashlib.sha256(f"{type(model).__module__}.{type(model).__qualname__}\n".encode())
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            update_digest(digest, [value])
    return digest.hexdigest()
