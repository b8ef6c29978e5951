"""Run by test_folder.py: one training that is killed at random moments and resumed, each time in a fresh child.

Prints one line of JSON per death. Usage: killed.py DATA FOLDER.
"""

import json
import os
import random
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from deaths import in_child

from qslm.training import LanguageModelSettings, loop, train_lm

DEATHS = 8


def outcome(run):
    """What must not depend on how often a training died."""
    if not (run / "training.json").exists():
        return None
    record = json.loads((run / "training.json").read_text())
    assert record["history"].pop("seconds") > 0
    assert record.pop("command").startswith(f"qslm train lm -o {run.name} ")
    files = {file.name: file.read_bytes() for file in run.iterdir()}
    kept = {name: files.pop(name) for name in ("training.json", "training.pt")}
    return record, files, sorted(kept)


def main(data, folder):
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not outlive a fork
    torch.set_num_threads(1)
    loop.SAVE_SECONDS = -1.0  # save at every fiftieth step

    def train(run):
        train_lm(LanguageModelSettings(run, data, 16, 1, 280, 16, 4, 60 * 4 * 16, 1e-2, 10))

    train(folder / "first")  # what PyTorch and matplotlib import on first use would be most of the calls
    reference = folder / "reference"
    calls, _ = in_child(train, reference)
    expected = outcome(reference)
    for number, moment in enumerate(random.Random(24).sample(range(1, calls), DEATHS)):
        run = folder / f"run{number}"
        died_of = in_child(train, run, moment)[1]
        kept = sorted(file.name for file in run.iterdir()) if run.exists() else []
        in_child(train, run)
        line = {"at": moment / calls, "died_of": died_of, "kept": kept, "same": outcome(run) == expected}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
