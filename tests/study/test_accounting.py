"""The account of energy that a search leaves: of its own selection, never a stale one, and never its failure."""

import json

import pytest
import torch
from networks.listeners import Talkative
from networks.spikegpt import random_spikegpt
from networks.tasks import Agreement, NextToken
from networks.tied import TiedNetwork
from torch import nn

from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.budget import Budget
from qslm.energy import Placement, Terms, load_table, make_account, meter_calls, task_calls
from qslm.energy.account import DECODE
from qslm.errors import StudyError
from qslm.evaluation import Evaluator
from qslm.report import write_report
from qslm.search import Options
from qslm.study import accounting, search

WIDE = Budget(None, 90.0, "points")


class Own(nn.Module):
    """A matrix that is no Linear."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(width))

    def forward(self, x):
        return x @ self.weight


class Classifier(nn.Module):
    """Ids to the logits of classes; `own` puts a module between that nobody knows."""

    def __init__(self, own=False):
        super().__init__()
        self.emb = nn.Embedding(40, 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.own = Own(8) if own else nn.Identity()
        self.head = nn.Linear(8, 4)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, ids):
        x = self.emb(ids)
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.head(self.own(x).mean(1))


def read(run, name="energy.json"):
    return json.loads((run / name).read_text())


def find(run, model, budget=WIDE, progress=None, **options):
    task = Agreement(model)
    options = Options(**{"strategy": "uniform", "precisions": (8, 4), **options})
    return search(model, task, budget=budget, output=run, options=options, progress=progress or Talkative())


def test_the_account_is_of_the_selection_and_of_all_candidates(tmp_path):
    model = random_spikegpt(width=8, ffn_width=12, layers=2, classes=None)
    task = NextToken(model, vocabulary=31)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    budget, options = Budget(None, 0.5, "relative"), Options(strategy="uniform", precisions=(8, 4))
    selection = search(model, task, budget=budget, output=tmp_path, options=options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    found = read(tmp_path)
    assert found["selected"] == selection.allocation.key and found["split"] == "search"
    complete = [line["key"] for line in read(tmp_path, "study.json")["tiers"] if line["complete"]]
    assert sorted(found["candidates"]) == sorted(complete)
    with Evaluator(model, find_anatomy(model), task) as evaluator:
        evaluator.apply(selection.allocation)
        meter = meter_calls(model, task_calls(model, task, accounting.TOKENS), accounting.TOKENS)
    assert found["tokens"] == meter.tokens > 400
    own = make_account(meter.layers, load_table(), DECODE, "ran", Terms.of(selection.allocation), Placement()).total
    (ran,) = (one for one in found["accounts"] if (one["scenario"], one["machine"]) == ("decode", "ran"))
    assert ran["total_pj"] == own.total == found["candidates"][selection.allocation.key]["decode"]["total_pj"]
    floats = Allocation.float32(find_anatomy(model)).key
    assert found["candidates"][floats]["decode"]["memory_pj"] > 2 * own.memory


def test_another_budget_in_the_same_folder_replaces_it(tmp_path):
    model = Classifier()
    first = find(tmp_path, model, budget=Budget(None, 90.0, "points"))
    second = find(tmp_path, model, budget=Budget(None, 90.0, "points"), precisions=(8,))
    assert first.allocation.key != second.allocation.key == read(tmp_path)["selected"]
    write_report(tmp_path)


def test_a_search_that_accepts_nothing_leaves_no_account(tmp_path):
    model = Classifier()
    smallest = find(tmp_path, model).selected.bytes
    assert (tmp_path / "energy.json").is_file()
    with pytest.raises(StudyError, match="None of"):
        find(tmp_path, model, budget=Budget(smallest, 0.0, "points"))
    assert not (tmp_path / "energy.json").exists()
    assert 'id="energy"' not in write_report(tmp_path).read_text(encoding="utf-8")


def test_a_network_of_unknown_matrices_has_a_sentence_in_place_of_an_account(tmp_path):
    listener = Talkative()
    selection = find(tmp_path, Classifier(own=True), progress=listener)
    assert selection.artifact.is_dir()
    found = read(tmp_path)
    assert set(found) == {"version", "checkpoint", "selected", "missing"}
    assert found["missing"].startswith("Of own, which have matrices, the operations are not known")
    assert f"no account of energy: {found['missing']}" in listener.heard
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert 'id="energy"' not in text and "Of own, which have matrices" in text


@pytest.mark.parametrize("error", [RuntimeError("shapes"), StudyError("No text.", "Give some."), KeyError("x")])
def test_metering_that_fails_does_not_fail_the_search(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(accounting, "meter_calls", fail)
    selection = find(tmp_path, Classifier())
    assert selection.packed and (tmp_path / "selection.json").is_file()
    assert getattr(error, "problem", type(error).__name__) in read(tmp_path)["missing"]
    write_report(tmp_path)


def test_an_account_that_cannot_be_written_does_not_fail_the_search(tmp_path):
    class Blocking(Talkative):
        """Puts a folder where the file would be, once the search is on."""

        def message(self, text):
            super().message(text)
            (tmp_path / ".energy.json.tmp").mkdir(exist_ok=True)

    listener = Blocking()
    selection = find(tmp_path, Classifier(), progress=listener)
    assert selection.packed and not (tmp_path / "energy.json").exists()
    assert any("no account of energy: Cannot write" in text for text in listener.heard)
    assert 'id="energy"' not in write_report(tmp_path).read_text(encoding="utf-8")


def test_tied_matrices_are_known(tmp_path):
    model = TiedNetwork()
    task = NextToken(model)
    options = Options(strategy="uniform", precisions=(8,))
    search(model, task, budget=Budget(None, 0.5, "relative"), output=tmp_path, options=options)
    assert "missing" not in read(tmp_path) and {"head", "emb"} <= set(read(tmp_path)["layers"])
