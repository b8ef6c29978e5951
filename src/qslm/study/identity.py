"""All that the evaluations of a study depend on: checkpoint, task, data, code, versions, machine."""

import hashlib
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from qslm import _native
from qslm.anatomy import Anatomy
from qslm.study.folder import anatomy_digest
from qslm.study.subject import Subject
from qslm.tasks.task import Task

# What a number in the ledger is computed by. Search, report and command line may change under a study.
MEASURING = ("models", "formats", "quantizers", "tasks", "evaluation", "anatomy", "allocation.py")
PACKAGE = Path(__file__).parents[1]


def identity(subject: Subject, task: Task, anatomy: Anatomy) -> dict[str, Any]:
    """What the evaluations of a study depend on, as JSON values, each under a name that a person knows.

    `facts` are what the digests of `data` come from, where the task can say it; they are not compared themselves.
    """
    device = next((parameter.device for parameter in subject.model.parameters()), torch.device("cpu"))
    return {
        "checkpoint": {
            "digest": subject.digest,
            "config": subject.config,
            "bytes": subject.file_bytes,
            "anatomy": anatomy_digest(anatomy),
        },
        "task": {"name": task.name, "metric": task.metric, "higher_is_better": task.higher_is_better},
        "facts": getattr(task, "facts", dict)(),
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
    """The sha256 over the source files and the compiled kernels that evaluations are computed by."""
    return files_digest(measuring_files())


def measuring_files() -> dict[str, Path]:
    """The files that numbers are computed by, under their names in the package.

    An editable install keeps the compiled kernels elsewhere than the sources, so they are asked where they lie.
    """
    places = [PACKAGE / name for name in MEASURING]
    files = [file for place in places for file in ([place] if place.is_file() else place.rglob("*.py"))]
    kernels = Path(str(_native.__file__))
    return {**{str(file.relative_to(PACKAGE)): file for file in sorted(files)}, kernels.name: kernels}


def files_digest(files: Mapping[str, Path]) -> str:
    """The sha256 over the names and the contents of files."""
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        digest.update(f"{name}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
