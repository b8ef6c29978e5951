"""Metering the calls of a task, measuring them, and accounts as JSON values."""

import json

import pytest
import torch
from networks.spikegpt import random_ids, random_spikegpt
from networks.tasks import NextToken
from torch import nn

from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.energy import (
    MACHINES,
    SCENARIOS,
    Counters,
    Placement,
    Terms,
    find_counters,
    load_table,
    make_account,
    measure_call,
    meter_calls,
    metered,
    per_token,
    statement,
    task_calls,
)
from qslm.energy.power import Counter
from qslm.errors import TaskError
from qslm.formats import Format

TABLE, WHERE = load_table(), Placement()


@pytest.fixture(scope="module")
def model():
    return random_spikegpt(width=8, ffn_width=12, layers=2)


@pytest.fixture(scope="module")
def task(model):
    return NextToken(model, windows=12, tokens=9, vocabulary=31, batch=5)


@pytest.mark.parametrize("tokens", [1, 7, 9, 45, 100])
def test_about_so_many_tokens_are_metered(model, task, tokens):
    meter = meter_calls(model, task_calls(model, task, tokens), tokens)
    assert tokens - 9 < meter.tokens <= tokens  # whole rows, but for a first one that is cut


def test_what_is_metered_is_what_the_network_is_called_with(model, task):
    calls = task_calls(model, task, 18)
    meter = meter_calls(model, calls, 18)
    with torch.inference_mode(), metered(model) as own:
        model(calls[0].arguments[0][:2])
    assert calls[0].arguments[0].shape == (2, 9)
    assert meter.layers == own.layers


def test_no_text_is_refused(model, task):
    empty = NextToken(model, windows=12, tokens=9, vocabulary=31)
    empty.splits = {"search": [], "report": []}
    with pytest.raises(TaskError, match="is empty"):
        task_calls(model, empty, 10)


class Meterstick(Counter):
    """A joule at every reading."""

    name = "meterstick"

    def joules(self):
        return 1.0


def test_a_call_is_measured_where_there_is_a_counter(task, monkeypatch):
    import qslm.energy.calls as place

    ran = []

    class Echo(nn.Module):
        def forward(self, ids):
            ran.append(ids)

    call = task_calls(random_spikegpt(width=8, ffn_width=12), task, 9)[0]
    monkeypatch.setattr(place, "measure", lambda work, counters: (work(), counters))
    counters = Counters((Meterstick(),), ())
    assert measure_call(Echo(), call, counters) == (call.tokens, counters)
    assert len(ran) == 2  # once to warm up
    assert measure_call(Echo(), call, Counters((), ("Nothing here.",))) is None and len(ran) == 2


def test_counters_that_are_missing_say_so(tmp_path):
    assert find_counters(tmp_path, "no_such_package").missing


def test_a_statement_is_what_the_accounts_are(model):
    anatomy = find_anatomy(model)
    terms = Terms.of(Allocation.uniform(anatomy, Format.parse("int4-row")))
    with torch.inference_mode(), metered(model) as meter:
        model(random_ids(model, 2, 6))
    found = statement(meter, anatomy, TABLE, terms, WHERE)
    assert json.loads(json.dumps(found)) == found
    assert found["tokens"] == 12 and found["not_counted"] == []
    assert [(one["scenario"], one["machine"]) for one in found["accounts"]] == [
        (scenario.name, machine) for scenario in SCENARIOS for machine in MACHINES
    ]
    for one, scenario in zip(found["accounts"], [s for s in SCENARIOS for _ in MACHINES], strict=True):
        account = make_account(meter.layers, TABLE, scenario, one["machine"], terms, WHERE)
        assert one["total_pj"] == account.total.total
        assert one["layers"].keys() == found["layers"].keys() == account.energies.keys()
        assert sum(part["bytes"] for part in one["bytes"]) == pytest.approx(sum(account.work.bytes.values()))
    assert found["layers"]["blocks.1.ffn.value"]["block"] == "attention 1"


def test_candidates_are_compared_by_a_token(model):
    anatomy = find_anatomy(model)
    with torch.inference_mode(), metered(model) as meter:
        model(random_ids(model, 2, 6))
    wide, narrow = (
        per_token(meter.layers, TABLE, Terms.of(Allocation.uniform(anatomy, Format.parse(name))), WHERE)
        for name in ("int8-row", "int2-row")
    )
    for scenario in SCENARIOS:
        terms = Terms.of(Allocation.uniform(anatomy, Format.parse("int8-row")))
        account = make_account(meter.layers, TABLE, scenario, "ran", terms, WHERE)
        assert wide[scenario.name]["total_pj"] == pytest.approx(account.total.total / scenario.tokens)
        assert narrow[scenario.name]["memory_pj"] < wide[scenario.name]["memory_pj"]
