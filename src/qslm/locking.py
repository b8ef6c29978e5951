"""One process at a time in a folder; the system gives the lock back when the process ends, however it ends."""

import fcntl
import os
import time
from pathlib import Path

from qslm.errors import QslmError

LOOKING = 0.1  # seconds within which `is_locked` has surely let go again


def lock_folder(folder: Path, refusal: QslmError) -> int:
    """Lock `folder`, made where it is missing, and return what `os.close` unlocks.

    Raises `refusal` when another process holds it, OSError when the folder cannot be made or opened.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _take(lock)
    except BlockingIOError:
        os.close(lock)
        raise refusal from None
    except BaseException:
        os.close(lock)
        raise
    return lock


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of a folder now. Raises OSError when there is no such folder."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _take(lock: int) -> None:
    """Take the lock at once, or after LOOKING: somebody may just be asking whether it is taken."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(LOOKING)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
