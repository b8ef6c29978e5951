from types import SimpleNamespace

import numpy as np
import pytest
from networks.encoder import SpikingEncoder
from networks.tasks import Agreement

from qslm.budget import Budget
from qslm.search import Options
from qslm.study import search
from qslm.study.recorded import recorded_task, source_of
from qslm.study.telling import expected_value
from qslm.tasks.statistics import loss_of


@pytest.mark.parametrize("kind", ["absolute", "relative", "points"])
@pytest.mark.parametrize("higher_is_better", [False, True])
def test_the_expected_value_has_the_loss_that_it_was_made_from(kind, higher_is_better):
    task = SimpleNamespace(higher_is_better=higher_is_better)
    value = expected_value(task, kind, 0.75, 0.125)
    assert loss_of(task, kind)(value, 0.75) == pytest.approx(0.125)
    assert (value < 0.75) == higher_is_better
    assert np.isinf(expected_value(task, kind, 0.75, np.inf))


class Heard:
    def __init__(self):
        self.messages = []

    def track(self, items, total, description):
        return items

    def message(self, text):
        self.messages.append(text)


def test_an_evaluation_that_ended_early_is_told_beside_the_baseline(tmp_path):
    model = SpikingEncoder(depth=1, width=8)
    task, heard = Agreement(model, sentences=400, batch=20), Heard()
    task.exchangeable, task.source = True, "drawn at random"
    options = Options(strategy="tiered", precisions=(8, 6, 4, 3, 2))
    found = search(model, task, budget=Budget(None, 15.0, "points"), output=tmp_path, options=options, progress=heard)
    told = [text for text in heard.messages if text.lstrip()[:1].isdigit()]
    assert all(("about" in text) == ("foretold from" in text) for text in told)
    early = [text for text in told if "foretold from" in text]
    for text in early:
        value, loss = (float(text.split(word)[1].split()[0]) for word in ("about ", "loss "))
        assert value == pytest.approx(found.search_baseline.value - loss / 100, abs=1e-4)
    assert early and found.source == found.to_dict()["source"] == "drawn at random"


def test_the_source_is_read_from_the_identity():
    content = {"name": "text", "metric": "perplexity", "higher_is_better": False, "unit": "window"}
    assert recorded_task(content, source_of({"facts": {"source": "own.txt"}})).source == "own.txt"
    assert source_of({"facts": {}}) == source_of({}) == ""
