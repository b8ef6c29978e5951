import json
import shutil
import time
from dataclasses import replace

import pytest
import torch
from networks.encoder import SpikingEncoder
from networks.tasks import Agreement

from qslm.budget import Budget
from qslm.errors import LedgerError, QslmError, StudyError
from qslm.evaluation import Evaluator
from qslm.search import Options
from qslm.study import folder, search, select, status

DROP = Budget(None, 15.0, "points")
OPTIONS = Options(strategy="tiered", precisions=(8, 6, 4, 3, 2))


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    model = SpikingEncoder(depth=1, width=8)
    task = Agreement(model, sentences=400, batch=20)
    task.exchangeable = True
    return model, task


class Watching:
    """A listener that looks at the study whenever it says something."""

    def __init__(self, run):
        self.run, self.seen = run, []

    def track(self, items, total, description):
        return items

    def message(self, text):
        self.seen.append((text, status(self.run)))


def test_a_study_can_be_watched_while_it_runs(encoder, tmp_path):
    model, task = encoder
    watching = Watching(tmp_path)
    selection = search(model, task, budget=DROP, output=tmp_path, options=OPTIONS, progress=watching)
    assert {found.state for _, found in watching.seen} == {"running"}
    first = watching.seen[0][1]
    assert first.best is None and "baseline" in first.why and first.evaluations == 0 and first.seconds == 0
    assert first.maximum_evaluations is None and first.seconds_left is None
    planned = next(found for text, found in watching.seen if text.startswith("at most"))
    assert planned.maximum_evaluations > 0 and planned.seconds_left > 0 and "None of 0" not in planned.why
    counts = [found.evaluations for text, found in watching.seen if text.lstrip()[0].isdigit()]
    assert counts == sorted(counts) and len(set(counts)) > 5
    sizes = [found.best.selected.bytes for _, found in watching.seen if found.best is not None]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] == selection.selected.bytes
    spent = [found.seconds for _, found in watching.seen]
    assert spent == sorted(spent)


def test_a_finished_study(encoder, tmp_path):
    model, task = encoder
    selection = search(model, task, budget=DROP, output=tmp_path, options=OPTIONS)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    found = status(tmp_path)
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert found.state == "finished" and found.seconds_left == 0 and found.seconds == pytest.approx(selection.seconds)
    assert found.best.selected == selection.selected == select(tmp_path).selected
    assert found.strategy == "tiered" and found.budget == DROP and found.evaluations <= found.maximum_evaluations
    content = json.loads(json.dumps(found.to_dict()))
    assert content["best"]["selected"]["bytes"] == selection.selected.bytes and content["state"] == "finished"
    shutil.rmtree(tmp_path / "artifact")
    (tmp_path / "selection.json").unlink()
    assert status(tmp_path).state == "interrupted"  # before it was packed


def test_a_study_that_was_stopped_and_one_with_a_baseline_only(encoder, tmp_path, monkeypatch):
    model, task = encoder
    measure, made = Evaluator.measure, []

    def dying(self, allocation, split, **more):
        if len(made) == most:
            raise KeyboardInterrupt
        made.append(allocation)
        return measure(self, allocation, split, **more)

    monkeypatch.setattr(Evaluator, "measure", dying)
    for most in (1, 4):
        with pytest.raises(KeyboardInterrupt):
            search(model, task, budget=DROP, output=tmp_path, options=OPTIONS)
        found = status(tmp_path)
        assert found.state == "interrupted" and found.evaluations == most - 1
        assert found.seconds_left > 0
        assert found.best is None  # what ended early is selected only once it is measured whole
        assert ("is foretold to keep it" in found.why) == (most == 4)
    whole = replace(OPTIONS, early=False)
    with pytest.raises(KeyboardInterrupt):
        search(model, task, budget=DROP, output=tmp_path / "whole", options=whole)
    made.clear()
    with pytest.raises(KeyboardInterrupt):
        search(model, task, budget=DROP, output=tmp_path / "whole", options=whole)
    assert status(tmp_path / "whole").best.selected == select(tmp_path / "whole").selected


def test_a_study_without_an_answer(encoder, tmp_path):
    with pytest.raises(StudyError):
        search(*encoder, budget=Budget(None, 5.0, "points"), output=tmp_path, options=Options(precisions=(3, 2)))
    found = status(tmp_path)
    assert found.state == "nothing accepted" and found.best is None and "the closest is" in found.why


def test_a_limit_is_said(encoder, tmp_path):
    options = Options(strategy="tiered", max_evaluations=3)
    search(*encoder, budget=DROP, output=tmp_path, options=options)
    assert status(tmp_path).stopped == "evaluations" and status(tmp_path).evaluations == 3


@pytest.mark.parametrize("change", [{"ended": None, "tiers": None}, {"options": {}}, {"maximum_evaluations": "x"}])
def test_what_is_no_study_is_refused(encoder, tmp_path, change):
    with pytest.raises(StudyError, match=r"There is no .*study\.json"):
        status(tmp_path / "none")
    run = tmp_path / "run"
    search(*encoder, budget=DROP, output=run, options=Options(strategy="tiered", max_evaluations=3))
    study = json.loads((run / folder.STUDY).read_text())
    (run / folder.STUDY).write_text(json.dumps({**study, **change}))
    with pytest.raises(StudyError, match="lacks something"):
        status(run)
    (run / folder.LEDGER).write_bytes(b"x" * 5000)
    with pytest.raises(LedgerError, match="damaged"):
        status(run)
    (run / folder.LEDGER).unlink()
    with pytest.raises(QslmError):
        status(run)


def test_looking_keeps_no_search_out(tmp_path):
    """A search that begins at the moment somebody looks finds the folder free a little later."""
    import fcntl
    import os
    import threading

    from qslm.locking import is_locked, lock_folder

    assert not is_locked(tmp_path)
    looking = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    threading.Thread(target=lambda: (time.sleep(0.02), os.close(looking))).start()
    lock = lock_folder(tmp_path, LedgerError("Taken.", "Wait."))
    assert is_locked(tmp_path)
    os.close(lock)
    assert not is_locked(tmp_path)
