"""The benchmark of the tokenizer: what it prints is whole, and the ids are equal."""

import json
import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_both_tokenizers_are_measured_on_the_same_ids(monkeypatch, capsys, data_folder):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setattr(sys, "argv", ["tokenizer.py", "--quick", "--turns", "1", "--json", "--data", str(data_folder)])
    runpy.run_path(str(FOLDER / "tokenizer.py"), run_name="__main__")
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["same"] and row["ids"] > 10_000 and row["encode_ratio"] > 0 and row["load_ratio"] > 0
