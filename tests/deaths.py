"""Work in a forked child that SIGKILLs itself at a chosen Python function call; for the scripts named killed.py."""

import os
import signal
import sys
import traceback


def in_child(work, run, death=None):
    """Do `work(run)` in a child that dies at its `death`-th function call; return (calls, signal).

    Raises RuntimeError when the child fails instead; it says why on stderr.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        calls, status = 0, 1

        def count(frame, event, argument):
            nonlocal calls
            calls += 1
            if calls == death:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        try:
            work(run)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.setprofile(None)
            os.write(writer, str(calls).encode())
            os._exit(status)
    os.close(writer)
    status = os.waitpid(child, 0)[1]
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(f"the child failed in {run}, with death {death}")
    return int(text or 0), os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
