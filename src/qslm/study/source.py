"""What is studied: a loaded checkpoint, or any network, and all that its evaluations depend on."""

import hashlib
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from qslm.allocation import Allocation
from qslm.anatomy import find_anatomy
from qslm.tasks.task import Task

# What a number in the ledger is computed by. Search, report and command line may change under a study.
MEASURING = ("models", "formats", "quantizers", "tasks", "evaluation", "anatomy", "allocation.py")
PACKAGE = Path(__file__).parents[1]


class LoadedCheckpoint(Protocol):
    """What a study asks of a checkpoint; `qslm.loading.Checkpoint` is one."""

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
class Source:
    """A network with its name, its digest, and the bytes of the file that it came from."""

    name: str
    model: nn.Module
    digest: str
    file_bytes: int
    config: dict[str, Any]
    tokenizer_json: str | None

    @classmethod
    def of(cls, checkpoint: LoadedCheckpoint | nn.Module) -> "Source":
        """Take a checkpoint, or a bare network: its digest is that of its weights, its file the float32 one."""
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
        )


def identity(source: Source, task: Task) -> dict[str, Any]:
    """What the evaluations of a study depend on, as JSON values, each under a name that a person knows."""
    device = next((parameter.device for parameter in source.model.parameters()), torch.device("cpu"))
    return {
        "checkpoint": {"digest": source.digest, "config": source.config},
        "task": {"name": task.name, "metric": task.metric},
        "data": {split: task.fingerprint(split) for split in ("search", "report")},
        "code": {"qslm": qslm_version(), "digest": code_digest()},
        "versions": {"torch": torch.__version__},
        "machine": {
            "device": str(device),
            "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
            "threads": torch.get_num_threads(),
        },
    }


def qslm_version() -> str:
    """The installed version of qslm."""
    try:
        return version("qslm")
    except PackageNotFoundError:
        return "unknown"


@cache
def code_digest() -> str:
    """The sha256 over the source files and compiled kernels that evaluations are computed by."""
    digest = hashlib.sha256()
    for file in _measuring_files():
        digest.update(f"{file.relative_to(PACKAGE)}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _measuring_files() -> list[Path]:
    places = [PACKAGE / name for name in MEASURING]
    files = [file for place in places for file in ([place] if place.is_file() else place.rglob("*.py"))]
    return sorted([*files, *PACKAGE.glob("_native*.so")])


def weights_digest(model: nn.Module) -> str:
    """The sha256 over the class and the state dict of a network: names, types, shapes and bits."""
    digest = hashlib.sha256(f"{type(model).__module__}.{type(model).__qualname__}\n".encode())
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            update_digest(digest, [value])
    return digest.hexdigest()


def update_digest(digest: Any, tensors: Iterable[Tensor]) -> None:
    """Feed the bits of tensors to a hashlib digest."""
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
