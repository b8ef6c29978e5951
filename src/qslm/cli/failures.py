"""What the user reads, and the exit status, when something fails."""

import contextlib
import errno
import os
import sys
import traceback
from pathlib import Path

from qslm.errors import QslmError

BAD_INPUT = 2
INTERNAL = 1
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
BROKEN_PIPE = 141  # 128 + SIGPIPE
RESUMABLE = ("search", "sensitivity", "demo", "train")
TRACEBACK = "QSLM_TRACEBACK"

OUT_OF_MEMORY = ("allocate memory", "not enough memory", "out of memory", "Storage size calculation overflowed")

STORAGE = {
    errno.ENOSPC: "Free some space there, or give another folder.",
    errno.EDQUOT: "Free some space there, or give another folder.",
    errno.EROFS: "Give a folder that can be written.",
    errno.EACCES: "Change the permissions, or give another path.",
    errno.EPERM: "Change the permissions, or give another path.",
    errno.ENOENT: "Check the path.",
    errno.EISDIR: "Give a file, not a folder.",
    errno.ENOTDIR: "Check the path: a part of it is a file.",
    errno.EEXIST: "Give another path, or remove what stands there.",
    errno.ENAMETOOLONG: "Give a shorter path.",
}


def explain(error: BaseException, verb: str) -> int:
    """Write one message about `error` to stderr and return the exit status that belongs to it."""
    if isinstance(error, QslmError):
        return _say(error.problem, error.remedy, BAD_INPUT)
    if isinstance(error, KeyboardInterrupt):
        return _stopped(verb)
    if isinstance(error, BrokenPipeError):
        return _silence_stdout()
    if isinstance(error, OSError):
        return _say(_system_message(error), STORAGE.get(error.errno or 0, ""), BAD_INPUT)
    if _lacks_memory(error):
        remedy = "Close other programs, or ask for less: a smaller network, or fewer tokens at once."
        return _say("The memory of this machine does not suffice.", remedy, BAD_INPUT)
    return _internal(error)


def _system_message(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason[:1].lower()}{reason[1:]}." if error.filename else f"{reason}."


def _lacks_memory(error: BaseException) -> bool:
    """Whether an allocation failed; PyTorch tells it as a RuntimeError, and one beyond 2^63 bytes as an overflow."""
    told = isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
    return told or isinstance(error, MemoryError)


def _say(problem: str, remedy: str, status: int) -> int:
    lines = [f"qslm: error: {problem}", *(f"  {line}" for line in remedy.splitlines())]
    _write("\n".join(lines))
    return status


def _stopped(verb: str) -> int:
    hint = "; the same command goes on where it was" if verb in RESUMABLE else ""
    _write(f"qslm: stopped{hint}")
    return INTERRUPTED


def _silence_stdout() -> int:
    """Whoever read our output has gone: write the rest nowhere, so that the exit is quiet too."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


def _internal(error: BaseException) -> int:
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    _write(
        f"qslm: internal error: {type(error).__name__}: {error}{where}\n"
        f"  This is a fault of qslm. Please report it with the command and with what {TRACEBACK}=1 prints."
    )
    return INTERNAL


def _write(text: str) -> None:
    """Write to stderr, with control characters (of a hostile file name, say) made visible."""
    shown = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    with contextlib.suppress(OSError, ValueError):  # where stderr itself is closed, the exit status still tells
        print(shown, file=sys.stderr, flush=True)
