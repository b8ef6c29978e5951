"""Run by test_resume.py: one study that is killed at random moments and resumed, each time in a fresh child.

A process that has loaded PyTorch once forks all the children, so that a death costs milliseconds. The moments
are counted in Python function calls and drawn from a seed, so that they are the same in every run.
Prints one line of JSON per death.
"""

import hashlib
import json
import random
import shutil
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import deaths
from networks.encoder import SpikingEncoder
from networks.tasks import Agreement

from qslm.budget import Budget
from qslm.search import Options
from qslm.study import search

DEATHS = 20
CHANGES = 8  # deaths under another budget than that of the finished study in the folder


def study(run, drop=15.0):
    torch.manual_seed(0)
    model = SpikingEncoder(depth=1, width=8)
    task = Agreement(model, sentences=240, batch=40)
    task.exchangeable = True  # so that evaluations end early
    options = Options(precisions=(8, 6, 4, 3, 2))
    search(model, task, budget=Budget(None, drop, "points"), output=run, options=options)


def changed(run):
    """The study of the same network under a budget that selects another allocation."""
    study(run, drop=60.0)


def in_child(run, death=None, work=study):
    """Run the study in a child that kills itself at its `death`-th function call; (calls, signal)."""
    return deaths.in_child(work, run, death)


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
    assert not all(line["complete"] for line in expected[1]["tiers"])
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
    change_the_budget(folder)


def change_the_budget(folder):
    """Kill a search under another budget in copies of a finished study, and resume it."""
    first, second = folder / "reference", shutil.copytree(folder / "reference", folder / "second")
    calls, _ = in_child(second, work=changed)
    expected = outcome(second)
    for number, moment in enumerate(random.Random(21).sample(range(1, calls), CHANGES)):
        run = shutil.copytree(first, folder / f"changed{number}")
        died_of = in_child(run, moment, changed)[1]
        agrees = agree(run)
        in_child(run, work=changed)
        same = outcome(run) == expected != outcome(first)
        print(json.dumps({"changed": moment / calls, "died_of": died_of, "agrees": agrees, "same": same}), flush=True)


def agree(run):
    """Whether a selection that is there is of the study's budget and of the packed model."""
    if not (run / "selection.json").exists():
        return True
    selection, study = (json.loads((run / name).read_text()) for name in ("selection.json", "study.json"))
    packed = hashlib.sha256((run / "artifact" / "model.safetensors").read_bytes()).hexdigest()
    return selection["budget"] == study["budget"] and selection["artifact"]["sha256"] == packed


if __name__ == "__main__":
    main(Path(sys.argv[1]))
