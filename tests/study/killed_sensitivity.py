"""Run by test_sensitivity_resume.py: a study of sensitivity, killed at random moments and resumed (see killed.py)."""

import json
import random
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import deaths
from networks.encoder import SpikingEncoder
from networks.tasks import Agreement

from qslm.search import Options
from qslm.study import sensitivity

DEATHS = 8


def study(run):
    model = SpikingEncoder(depth=2, width=8)
    sensitivity(model, Agreement(model, sentences=60, batch=30), output=run, options=Options(precisions=(4, 2)))


def content(run):
    path = run / "sensitivity.json"
    return json.loads(path.read_text()) if path.exists() else {"lines": []}


def main(folder):
    torch.set_num_threads(1)
    calls, _ = deaths.in_child(study, folder / "reference")
    expected = content(folder / "reference")
    for number, moment in enumerate(random.Random(22).sample(range(1, calls), DEATHS)):
        run = folder / f"run{number}"
        died_of = deaths.in_child(study, run, moment)[1]
        kept = len(content(run)["lines"])  # whole JSON, whenever it died
        again, _ = deaths.in_child(study, run)
        found = content(run)
        drifts, expected_drifts = found.pop("drifts"), dict(expected["drifts"])
        same = found == {name: value for name, value in expected.items() if name != "drifts"}
        line = {"at": moment / calls, "died_of": died_of, "kept": kept, "calls": again / calls}
        print(json.dumps({**line, "same": same and drifts == expected_drifts}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
