"""Files that appear whole or not at all: written beside their place, made durable, then moved."""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, TypeAlias

from qslm.errors import ArtifactError

Staged: TypeAlias = tuple[Path, Path]  # the finished temporary file, and the place that it is for


def stage(path: Path, content: Callable[[IO[bytes]], None]) -> Staged:
    """Write a file beside `path`, durably; nothing of it stays behind when that fails (ArtifactError)."""
    # A fixed name, so that what a killed process left behind is overwritten by the next and never piles up.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            content(file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        discard([(temporary, path)])
        if isinstance(error, OSError):
            raise _unwritable(path, error) from error
        raise
    return temporary, path


def stage_bytes(path: Path, content: bytes) -> Staged:
    """Stage a file of known content. Raises ArtifactError."""

    def fill(file: IO[bytes]) -> None:
        file.write(content)

    return stage(path, fill)


def write_bytes(path: Path, content: bytes) -> None:
    """Write one file, whole or not at all. Raises ArtifactError."""
    commit([stage_bytes(path, content)])


def commit(files: Iterable[Staged]) -> None:
    """Move staged files to their places, in order; those that were not moved are removed."""
    remaining = list(files)
    try:
        while remaining:
            temporary, path = remaining[0]
            temporary.replace(path)
            remaining.pop(0)
            _sync_folder(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        discard(remaining)


def discard(files: Iterable[Staged]) -> None:
    """Remove staged files that are not wanted any more."""
    for temporary, _ in files:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the new name durable; systems that cannot sync a folder keep it without."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(path: Path, error: OSError) -> ArtifactError:
    reason = error.strerror or str(error)
    return ArtifactError(f"Cannot write {path}: {reason}.", "Free some space, or choose another folder.")
