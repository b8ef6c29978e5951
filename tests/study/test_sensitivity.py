import json

import numpy as np
import pytest
import torch
from networks.encoder import SpikingEncoder
from networks.spikegpt import random_spikegpt
from networks.tasks import Agreement, NextToken
from networks.tied import TiedNetwork
from torch import nn

from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.budget import Budget
from qslm.errors import AllocationError, LedgerError, StudyError
from qslm.evaluation import Evaluator, Ledger
from qslm.evaluation.density import layouts_by_density
from qslm.evaluation.drift import divergence
from qslm.evaluation.estimates import estimate_costs
from qslm.formats import FLOAT32, Format
from qslm.models.neurons import SpikeTrace
from qslm.quantizers import round_site
from qslm.search import Options, make_strategy
from qslm.study import loop, read_sensitivity, search, sensitivity
from qslm.study.identity import identity
from qslm.study.judging import ALONE
from qslm.study.sensitivity import find_parts
from qslm.study.subject import Subject
from qslm.tasks.statistics import compare

OPTIONS = Options(precisions=(4, 2))


@pytest.fixture
def encoder():
    model = SpikingEncoder()
    return model, Agreement(model)


@pytest.fixture(scope="module")
def language():
    """A SpikeGPT with its task, and the study of all its parts."""
    model = random_spikegpt(vocabulary=32, layers=2)
    return model, NextToken(model)


@pytest.fixture(scope="module")
def study(language, tmp_path_factory):
    run = tmp_path_factory.mktemp("study")
    return run, sensitivity(*language, output=run, options=OPTIONS)


@pytest.fixture
def measured(monkeypatch):
    """The allocations that evaluators are asked for, by key."""
    asked, measure = [], Evaluator.measure

    def counting(evaluator, allocation, split, **options):
        asked.append(allocation.key)
        return measure(evaluator, allocation, split, **options)

    monkeypatch.setattr(Evaluator, "measure", counting)
    return asked


def test_the_parts_of_spikegpt(language):
    anatomy = find_anatomy(language[0])
    named = {
        level: [part.name for part in find_parts(anatomy, level, OPTIONS)] for level in ("block", "module", "site")
    }
    assert named["block"] == ["all attention blocks", "attention 0", "attention 1", "output"]
    assert len(named["module"]) == 2 * 7 + 1 and "attention 1 ffn.value" in named["module"]
    assert len(named["site"]) == 15 and "blocks.0.att.key.weight" in named["site"]
    everything = find_parts(anatomy, "all", OPTIONS)
    assert len(everything) == sum(map(len, named.values()))
    together = everything[0]
    assert together.level == "attention"
    assert set(together.sites) == {name for name in named["site"] if name.startswith("blocks.")}
    with_embedding = find_parts(anatomy, "block", Options(signs=False))
    assert [part.name for part in with_embedding][1] == "input"


def test_every_part_at_every_width_once_per_set_of_sites(study, language):
    run, found = study
    anatomy = layouts_by_density(language[0], find_anatomy(language[0]), language[1])
    assert found.planned == len(found.lines) == 2 * len(find_parts(anatomy, "all", OPTIONS))
    keys = {line.key for line in found.lines}
    with Ledger.read(run / "ledger.sqlite") as ledger:
        rows = ledger.rows("search")
    assert {row.key for row in rows if row.tier == ALONE} == keys
    assert [row.tier for row in rows if row.key not in keys] == ["baseline"]
    assert len(keys) == 2 * (1 + 2 + 2 * 7 + 1)  # output is block, module and site at once
    assert len(found.ranked()) == len(keys)
    order = [(line.loss, line.divergence) for line in found.ranked()]
    assert order == sorted(order, reverse=True)
    for line in found.lines:
        expected = OPTIONS.uniform(anatomy, FLOAT32).replace(line.sites, Format.parse(line.format))
        assert line.key == expected.key
        assert found.about["baseline"]["bytes"] > line.bytes == expected.footprint().file


@pytest.mark.parametrize("name", ["all attention blocks", "attention 1", "blocks.0.ffn.key.weight", "head.weight"])
def test_the_figures_are_those_of_a_computation_by_hand(study, language, name):
    model, task = language
    line = next(line for line in study[1].lines if line.name == name and line.width == 2)
    rounded = random_spikegpt(vocabulary=32, layers=2)
    state = rounded.state_dict()
    for site in line.sites:
        state[site].copy_(round_site(state[site], Format.parse(line.format), "clip").dequantize())
    batches = task.batches("search")
    nats = [divergence(model(batch[:, :-1]), rounded(batch[:, :-1])) for batch in batches]
    assert line.rows == 40 * 12
    assert line.divergence == pytest.approx(float(torch.cat(nats).mean()), rel=1e-6)
    losses = [[task.losses(network, batch) for batch in batches] for network in (rounded, model)]
    joined = [type(parts[0]).concatenate(parts) for parts in losses]
    expected = compare(task, *joined, "absolute")
    assert (line.loss, line.low, line.high) == (expected.loss, expected.low, expected.high)
    assert line.value == task.reduce(joined[0])

    before, after = SpikeTrace(), SpikeTrace()
    model(batches[0][:, :-1], trace=before), rounded(batches[0][:, :-1], trace=after)
    assert [layer.name for layer in line.layers] == [
        f"blocks.{i}.{part}_lif" for i in (0, 1) for part in ("att", "ffn")
    ]
    for place, layer in enumerate(line.layers):
        h, hq = before.potentials[place].double(), after.potentials[place].double()
        s, sq = before.spikes[place], after.spikes[place]
        assert layer.flipped == pytest.approx(float((s != sq).double().mean()))
        assert layer.rate_change == pytest.approx(float(sq.mean() - s.mean()), abs=1e-7)
        assert layer.drift == pytest.approx(float((hq - h).abs().mean() / h.std(correction=0)), rel=1e-5)
    assert line.flipped == pytest.approx(np.mean([layer.flipped for layer in line.layers]))
    assert (line.flipped == 0) == (name == "head.weight")  # behind the last neuron
    assert line.drift == pytest.approx(np.mean([layer.drift for layer in line.layers]))


def test_a_classifier_without_our_neurons_has_no_spike_figures(encoder, tmp_path):
    model, task = encoder
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    found = sensitivity(model, task, output=tmp_path, options=OPTIONS, level="block")
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert found.about["kind"] == "points"
    assert [line.name for line in found.lines[::2]] == [
        *("all attention blocks", "input", "attention 0", "attention 1", "output")
    ]
    assert all(line.rows == 120 and line.flipped is line.drift is line.rate_change is None for line in found.lines)
    assert all(line.layers == () and line.low <= line.loss <= line.high for line in found.lines)
    model.eval()
    with Evaluator(model, find_anatomy(model), task) as evaluator:
        floats = [model(ids) for ids, _ in task.batches("search")]
        line = found.lines[3]
        base = Allocation.uniform(find_anatomy(model), FLOAT32, quantizer="clip")
        evaluator.apply(base.replace(line.sites, Format("integer", 2)))
        nats = [divergence(p, model(ids)) for p, (ids, _) in zip(floats, task.batches("search"), strict=True)]
    assert (line.name, line.width) == ("input", 2)
    assert line.divergence == pytest.approx(float(torch.cat(nats).detach().mean()), rel=1e-6)


def test_what_was_written_is_what_is_read(study):
    run, found = study
    again = read_sensitivity(run)
    assert again.to_dict() == json.loads(json.dumps(found.to_dict()))
    assert set(again.about["baseline"]["rates"]) == {layer.name for layer in found.lines[0].layers}


def test_the_same_call_measures_nothing_and_another_only_what_is_new(encoder, tmp_path, measured):
    first = sensitivity(*encoder, output=tmp_path, options=OPTIONS, level="module")
    count = len(measured)
    assert count == len({line.key for line in first.lines}) + 1
    again = sensitivity(*encoder, output=tmp_path, options=OPTIONS, level="module")
    assert len(measured) == count and again == first
    wider = sensitivity(*encoder, output=tmp_path, options=Options(precisions=(4, 3, 2)), level="module")
    assert len(measured) == count + 1 + len(first.lines) // 2
    assert [line for line in wider.lines if line.width != 3] == list(first.lines)
    assert sensitivity(*encoder, output=tmp_path, options=OPTIONS, level="module") == first


def test_a_killed_study_goes_on_where_it_was(encoder, tmp_path, measured, monkeypatch):
    whole = sensitivity(*encoder, output=tmp_path / "whole", options=OPTIONS, level="block")
    measured.clear()
    put, left = Ledger.put, [4]

    def dying(ledger, *values):
        put(ledger, *values)
        left[0] -= 1
        if left[0] == 0:  # in the ledger, but not yet in sensitivity.json
            raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, "put", dying)
    with pytest.raises(KeyboardInterrupt):
        sensitivity(*encoder, output=tmp_path / "run", options=OPTIONS, level="block")
    half = read_sensitivity(tmp_path / "run")
    assert len(half.lines) == 2 and half.planned == len(whole.lines)
    assert measured[1:] == [line.key for line in (whole.lines[9], whole.lines[8], whole.lines[7])]  # late blocks first
    measured.clear()
    assert sensitivity(*encoder, output=tmp_path / "run", options=OPTIONS, level="block") == whole
    assert len(measured) == len(whole.lines) + 1 - 2
    with Ledger.read(tmp_path / "run" / "ledger.sqlite") as ledger:
        assert len(ledger.rows("search")) == len(whole.lines) + 1


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 1}', '{"version": 1, "identity": 3}'])
def test_a_damaged_or_foreign_file_is_measured_again(encoder, tmp_path, content):
    first = sensitivity(*encoder, output=tmp_path, options=OPTIONS, level="block")
    (tmp_path / "sensitivity.json").write_text(content)
    with pytest.raises(StudyError):
        read_sensitivity(tmp_path)
    assert sensitivity(*encoder, output=tmp_path, options=OPTIONS, level="block") == first


def test_a_search_in_the_folder_finds_the_evaluations(tmp_path, measured):
    model = TiedNetwork()
    task = NextToken(model)
    options = Options(precisions=(2,), strategy="tiered")
    found = sensitivity(model, task, output=tmp_path, options=options)
    studied = {line.key for line in found.lines}
    measured.clear()
    search(model, task, budget=Budget(None, 0.5, "relative"), output=tmp_path, options=options)
    study = json.loads((tmp_path / "study.json").read_text())
    reused = {line["key"] for line in study["tiers"]} & studied
    assert reused and not set(measured) & studied


def test_what_a_knapsack_expects_is_corrected_by_what_was_measured_alone(tmp_path, encoder, monkeypatch):
    model, task = encoder
    found = sensitivity(model, task, output=tmp_path, options=OPTIONS, level="site")
    given = []
    monkeypatch.setattr(loop, "make_strategy", lambda *args: given.append(args) or make_strategy(*args))
    budget = Budget(None, 100.0, "points")
    search(model, task, budget=budget, output=tmp_path, options=OPTIONS)
    (*_, goal, costs), estimated = given[1], estimate_costs(model, find_anatomy(model), task, OPTIONS).costs
    for line in found.lines:
        key = (line.name, Format.parse(line.format))
        measured = goal.nats(np.array(line.loss))
        between = sorted((estimated.values[key], max(float(measured), 0.0)))
        assert between[0] - 1e-12 <= costs.values[key] <= between[1] + 1e-12
    assert costs.values != estimated.values
    search(model, task, budget=budget, output=tmp_path / "other", options=OPTIONS)
    assert given[3][-1].values == estimated.values  # each search asks twice: the first tells how much there is to do


@pytest.mark.parametrize("stop", [None, lambda losses: True])
def test_what_a_search_measured_is_kept_and_what_it_stopped_early_is_completed(tmp_path, encoder, stop):
    model, task = encoder
    anatomy = find_anatomy(model)
    part = find_parts(anatomy, "block", OPTIONS)[1]
    allocation = OPTIONS.uniform(anatomy, FLOAT32).replace(part.sites, OPTIONS.formats[0])
    with (
        Ledger.open(tmp_path / "ledger.sqlite", identity(Subject.of(model), task, anatomy)) as ledger,
        Evaluator(model, anatomy, task) as evaluator,
    ):
        evaluation = evaluator.measure(allocation, "search", stop=stop)
        ledger.put(allocation.key, "search", allocation.to_json(), "block", "note", evaluation)
    assert evaluation.complete == (stop is None)
    found = sensitivity(model, task, output=tmp_path, options=OPTIONS, level="block")
    with Ledger.read(tmp_path / "ledger.sqlite") as ledger:
        rows = {row.key: row for row in ledger.rows("search")}
    assert rows[allocation.key].number == 1 and rows[allocation.key].tier == ("block" if stop is None else ALONE)
    assert all(row.evaluation.complete and len(row.evaluation.losses.values) == 120 for row in rows.values())
    assert next(line for line in found.lines if line.key == allocation.key).divergence > 0


def test_what_makes_no_study_is_refused(encoder, tmp_path):
    model, task = encoder
    with pytest.raises(AllocationError, match="level 'row'"):
        sensitivity(model, task, output=tmp_path, level="row")
    with pytest.raises(AllocationError, match="quantizer"):
        sensitivity(model, task, output=tmp_path, options=Options(quantizers=("none",)))
    with pytest.raises(AllocationError, match="no matrix"):
        sensitivity(nn.LayerNorm(4), task, output=tmp_path)
    assert not (tmp_path / "ledger.sqlite").exists()
    sensitivity(model, task, output=tmp_path, options=OPTIONS, level="block")
    with pytest.raises(LedgerError, match="another study"):
        sensitivity(SpikingEncoder(seed=4), task, output=tmp_path, options=OPTIONS)
    with pytest.raises(StudyError, match=r"There is no .*sensitivity\.json"):
        read_sensitivity(tmp_path / "elsewhere")


@pytest.mark.parametrize("vectors", ["float32", "bfloat16"])
def test_outputs_that_are_reused_change_no_figure(language, tmp_path, monkeypatch, vectors):
    options = Options(precisions=(3, 2), vectors=Format.parse(vectors))
    quick = sensitivity(*language, output=tmp_path / "quick", options=options)
    made = Evaluator.__init__
    monkeypatch.setattr(Evaluator, "__init__", lambda *given, **named: made(*given, **named, cache_bytes=0))
    assert quick == sensitivity(*language, output=tmp_path / "plain", options=options)
