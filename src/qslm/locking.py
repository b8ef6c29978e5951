"""One process at a time in a folder; the system gives the lock back when the process ends, however it ends."""

import fcntl
import os
from pathlib import Path

from qslm.errors import QslmError


def lock_folder(folder: Path, refusal: QslmError) -> int:
    """Lock `folder`, made where it is missing, and return what `os.close` unlocks.

    Raises `refusal` when another process holds it, OSError when the folder cannot be made or opened.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise refusal from None
    except BaseException:
        os.close(lock)
        raise
    return lock
