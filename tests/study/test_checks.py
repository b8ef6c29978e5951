import numpy as np
import pytest
import torch
from networks.encoder import SpikingEncoder
from networks.tasks import Agreement

from qslm.anatomy.find import find_anatomy
from qslm.budget import Budget
from qslm.errors import BudgetError, StudyError, TaskError
from qslm.evaluation import Evaluator
from qslm.study import search
from qslm.study.checks import check_ground, check_sample


def checks(model, task, signs=True):
    with Evaluator(model, find_anatomy(model), task) as evaluator:
        return {check.name: check.finding for check in check_ground(evaluator, signs)}


@pytest.fixture
def task():
    return Agreement(SpikingEncoder())


def test_an_honest_network_passes(task):
    model = SpikingEncoder()
    model.emb.binarized = True
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = checks(model, task)
    assert list(found) == ["deterministic", "no-op", "signs", "recurrent"]
    assert "not checked" in found["recurrent"]
    assert "signs" not in checks(model, task, signs=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Noisy(SpikingEncoder):
    def forward(self, ids, mask=None):
        return super().forward(ids) + torch.rand(1, generator=self.generator)


def test_a_network_that_draws_at_random_is_refused(task):
    model = Noisy()
    model.generator = torch.Generator().manual_seed(0)
    with pytest.raises(StudyError, match="differently the second time"):
        checks(model, task)


def test_an_embedding_that_is_not_really_binarized_is_refused(task):
    class Real(SpikingEncoder):
        def forward(self, ids, mask=None):
            return super().forward(ids) + self.emb(ids).mean()

    model = Real()
    model.emb.binarized = True
    with pytest.raises(StudyError, match="stored as signs changes"):
        checks(model, task)
    assert "signs" not in checks(model, task, signs=False)


def test_a_float64_network_that_float32_can_hold_is_taken(task):
    assert checks(SpikingEncoder().double(), task)["no-op"]


class Placed(Agreement):
    def places(self, split):
        return np.split(np.arange(120), 2)


def test_a_limit_that_no_change_does_not_keep_is_refused_before_anything_is_written(tmp_path):
    model = SpikingEncoder()
    limit = 2.0  # of 120 sentences, z^2 / (n + z^2) = 2.20 points stay open, with z = 1.6449
    with pytest.raises(BudgetError, match=r"changes no answer of 120 sentences still has a bound of 2\.21 points"):
        search(model, Placed(model), budget=Budget(None, limit, "points"), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(BudgetError, match="still has a bound of 2"):
        search(model, Agreement(model), budget=Budget(None, limit, "points"), output=tmp_path / "run")
    check_sample(Placed(model), Budget(None, limit, "points", decision="point"))
    check_sample(Placed(model), Budget(None, 2.21, "points"))
    check_sample(Placed(model), Budget(None, 0.0, "points"))


@pytest.mark.parametrize(("unit", "told"), [("window", "1 window, .*shorter --context"), ("sentence", "1 sentence, ")])
def test_a_split_of_one_unit_is_refused_before_anything_is_done(tmp_path, unit, told):
    model = SpikingEncoder()

    class One(Placed):
        def places(self, split):
            return [np.arange(2 if split == "search" else 1)]

    task = One(model)
    task.unit = unit
    with pytest.raises(StudyError, match=f"(?s)report split of .* has {told}"):
        search(model, task, budget=Budget(None, 50.0, "points"), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_losses_that_are_none_are_refused(task, monkeypatch):
    monkeypatch.setattr(task, "losses", lambda model, batch: [0.5, 0.5])
    with pytest.raises(TaskError, match=r"(?s)returned a list.*Return qslm\.Losses"):
        checks(SpikingEncoder(), task)


def test_an_empty_split_is_refused(task):
    task.splits["search"] = []
    with pytest.raises(StudyError, match="empty"):
        checks(SpikingEncoder(), task)
