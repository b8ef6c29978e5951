"""The folder of a training: nobody else's, held by one process, and changed in whole files only."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qslm import folders
from qslm.errors import QslmError, TrainingError
from qslm.locking import lock_folder


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make `folder` and keep other processes out of it. Raises TrainingError when one, or something else, is in it."""
    problem, remedy = f"Another training is running in {folder}.", "Wait for its end, or name another output folder."
    try:
        lock = lock_folder(folder, TrainingError(problem, remedy))
    except OSError as error:
        raise TrainingError(
            f"The folder {folder} cannot be used: {error.strerror or error}.", "Name another output folder."
        ) from error
    try:
        folders.check(folder, "training", TrainingError)
        yield
    finally:
        os.close(lock)


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Turn what fails while files of `folder` are written into a TrainingError."""
    try:
        yield
    except (QslmError, OSError, RuntimeError) as error:  # torch.save turns an OSError into a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__
        reason = cause.strerror if isinstance(cause, OSError) else str(error)
        raise TrainingError(
            f"The training cannot be saved in {folder}: {reason}.",
            "Free some space or check the permissions, then give the same command again: it goes on from the last "
            "saved step.",
        ) from error
