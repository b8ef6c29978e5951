"""Every benchmark starts, and what replays recorded studies replays one."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from networks.spikegpt import random_spikegpt
from networks.tasks import NextToken

from qslm.budget import Budget
from qslm.search import Options
from qslm.study import search

FOLDER = Path(__file__).parents[1] / "benchmarks"
PROGRAMS = sorted(path.name for path in FOLDER.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)

    def run(program, *words):
        monkeypatch.setattr(sys, "argv", [program, *map(str, words)])
        try:
            runpy.run_path(str(FOLDER / program), run_name="__main__")
        except SystemExit as end:
            assert not end.code
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_benchmark_tells_its_options(run, program):
    assert f"usage: {program}" in run(program, "--help")


def test_the_parts_of_a_study_that_are_timed_are_there(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from full_size import study_parts
    from stopwatch import Stopwatch

    assert not Stopwatch(study_parts()).seconds  # a function that is not there is a KeyError


def test_what_is_foretold_is_replayed_from_a_recorded_study(run, tmp_path):
    model = random_spikegpt(vocabulary=32, layers=2)
    task = NextToken(model)
    task.metric = "perplexity"
    options = Options(precisions=(8, 4, 2), strategy="uniform", early=False)
    search(model, task, budget=Budget(None, 0.5, "relative"), output=tmp_path, options=options)
    (found,) = json.loads(run("foretelling.py", tmp_path, "--orders", 2, "--json")).values()
    assert found["asked"] > 0 and found["wrong"] <= found["foretold"] <= found["asked"]
