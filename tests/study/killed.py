"""Run by test_resume.py: one study that is killed at random moments and resumed, each time in a fresh child.

A process that has loaded PyTorch once forks all the children, so that a death costs milliseconds. The moments
are counted in Python function calls and drawn from a seed, so that they are the same in every run.
Prints one line of JSON per death.
"""

import json
import os
import random
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from networks.encoder import SpikingEncoder
from networks.tasks import Agreement

from qslm.budget import Budget
from qslm.study import search

DEATHS = 20


def study(run):
    model = SpikingEncoder(depth=2, width=8)
    task = Agreement(model, sentences=60, batch=30)
    search(model, task, budget=Budget(None, 15.0, "points"), output=run, precisions=(8, 6, 4, 3, 2))


def in_child(run, death=None):
    """Run the study in a child that kills itself at its `death`-th function call; (calls, signal)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        calls = 0

        def count(frame, event, argument):
            nonlocal calls
            calls += 1
            if calls == death:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        try:
            study(run)
        finally:
            sys.setprofile(None)
            os.write(writer, str(calls).encode())
            os._exit(0)
    os.close(writer)
    status = os.waitpid(child, 0)[1]
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    return int(text or 0), os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def outcome(run):
    """What must not depend on how often a study died."""
    if not (run / "selection.json").exists():
        return None
    selection = json.loads((run / "selection.json").read_text())
    seconds = selection.pop("seconds")
    assert seconds > 0
    return selection, json.loads((run / "study.json").read_text()), files(run / "artifact")


def files(folder):
    return {file.name: file.read_bytes().hex() for file in sorted(folder.iterdir())}


def evaluations(run):
    from qslm.errors import LedgerError
    from qslm.evaluation import Ledger

    try:
        with Ledger.read(run / "ledger.sqlite") as ledger:
            return len(ledger.rows("search")) + len(ledger.rows("report"))
    except LedgerError:
        return 0


def main(folder):
    torch.set_num_threads(1)
    calls, _ = in_child(folder / "reference")
    expected = outcome(folder / "reference")
    moments = random.Random(20).sample(range(1, calls), DEATHS)
    for number, moment in enumerate(moments):
        run = folder / f"run{number}"
        died_of = in_child(run, moment)[1]
        kept = evaluations(run)
        again = in_child(run, moment // 2)[1]  # and once more while it resumes
        in_child(run)
        same = outcome(run) == expected
        left = sorted(str(file.relative_to(run)) for file in run.rglob("*") if file.is_file())
        line = {"at": moment / calls, "died_of": died_of, "again": again, "kept": kept, "same": same, "left": left}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
