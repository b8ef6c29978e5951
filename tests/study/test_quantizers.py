"""Studies with several quantizers, among them one that looks at calibration text."""

import hashlib
import json
from dataclasses import replace

import pytest
from networks.spikegpt import random_spikegpt
from networks.tasks import NextToken

from qslm import artifact
from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.budget import Budget
from qslm.errors import AllocationError, LedgerError, StudyError
from qslm.evaluation import Evaluator, Ledger
from qslm.formats import Format
from qslm.search import Options
from qslm.study import pack, search, select
from qslm.study.folder import INPUTS

OPTIONS = Options(precisions=(8, 4, 3, 2), quantizers=("clip", "gptq", "hqq"))
BUDGET = Budget(None, 0.5, "relative")


@pytest.fixture(scope="module")
def network():
    return random_spikegpt(vocabulary=32, layers=2)


@pytest.fixture(scope="module")
def study(network, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    return run, search(network, NextToken(network), budget=BUDGET, output=run, options=OPTIONS)


def content(run):
    return (run / "artifact" / "model.safetensors").read_bytes()


def test_every_site_has_the_quantizer_that_is_expected_to_lose_least(study):
    run, selection = study
    with Ledger.read(run / "ledger.sqlite") as ledger:
        tried = [json.loads(row.allocation)["quantizer"] for row in ledger.rows("search") if row.tier != "baseline"]
    used = {name for one in tried for name in (one.values() if isinstance(one, dict) else [one])}
    assert "gptq" in used and used <= {"clip", "gptq", "hqq"}
    assert set(selection.allocation.quantizers) <= set(OPTIONS.quantizers)
    recorded = json.loads((run / "selection.json").read_text())["selected"]["allocation"]["quantizer"]
    assert recorded == selection.allocation.named_quantizers


def check_packed(run, selection, network):
    """The packed model is the selected allocation, and evaluates to what was measured of it."""
    packed = artifact.read(run / "artifact")
    assert Allocation.from_json(selection.allocation.anatomy, packed.allocation_json) == selection.allocation
    assert packed.file_bytes == selection.selected.bytes
    task, model = NextToken(network), random_spikegpt(vocabulary=32, layers=2, seed=5)
    model.load_state_dict(packed.state_dict())
    with Evaluator(model, find_anatomy(model), task) as evaluator:
        measured = evaluator.measure(Allocation.float32(evaluator.anatomy), "report")
    assert measured.value == selection.selected.figures.value


def test_the_packed_model_is_what_was_measured(study, network):
    check_packed(*study, network)


def test_the_same_call_gives_the_same_bytes_also_after_a_death_and_with_workers(study, network, tmp_path):
    run, selection = study
    before = content(run)
    again = search(network, NextToken(network), budget=BUDGET, output=run, options=OPTIONS)
    assert content(run) == before and again.allocation == selection.allocation
    (run / INPUTS).unlink()  # lost, and collected again
    search(network, NextToken(network), budget=BUDGET, output=run, options=OPTIONS)
    assert content(run) == before
    search(network, NextToken(network), budget=BUDGET, output=tmp_path, options=OPTIONS, workers=2)
    assert content(tmp_path) == before


def test_another_budget_is_packed_with_the_statistics_of_the_study(study, network, tmp_path):
    run, _ = study
    answer = select(run, max_rise="90%")
    if "gptq" not in answer.allocation.quantizers:
        pytest.skip("this budget selects what needs no statistics")
    pack(answer, tmp_path / "packed", network)
    first = hashlib.sha256((tmp_path / "packed" / "model.safetensors").read_bytes()).hexdigest()
    assert first == pack(answer, tmp_path / "again", network)
    kept = (run / INPUTS).read_bytes()
    (run / INPUTS).write_bytes(kept[:-1])
    try:
        with pytest.raises(StudyError, match="is not as the study has written it"):
            pack(answer, tmp_path / "third", network)
    finally:
        (run / INPUTS).write_bytes(kept)


def test_evaluations_by_other_statistics_are_not_gone_on_with(study, network, monkeypatch):
    run, _ = study
    monkeypatch.setattr("qslm.calibration.text.SEED", 1)
    monkeypatch.setattr("qslm.evaluation.inputs.TOKENS", 100)
    kept = (run / INPUTS).read_bytes()
    (run / INPUTS).unlink()
    try:
        with pytest.raises(LedgerError, match="rounded by other statistics"):
            search(network, NextToken(network), budget=BUDGET, output=run, options=OPTIONS)
    finally:
        (run / INPUTS).write_bytes(kept)


@pytest.mark.parametrize("strategy", ["uniform", "tiered"])
def test_other_strategies_round_by_the_first(network, tmp_path, strategy):
    options = Options(precisions=(8, 4), quantizers=("gptq", "clip"), strategy=strategy)
    found = search(network, NextToken(network), budget=BUDGET, output=tmp_path, options=options)
    assert found.allocation.quantizer == "gptq"


def test_a_quantizer_that_there_is_not_is_refused():
    with pytest.raises(AllocationError, match="There is no quantizer 'magic'"):
        Options(quantizers=("clip", "magic"))
    with pytest.raises(AllocationError, match="gptq is named twice"):
        Options(quantizers=("gptq", "clip", "gptq"))
    with pytest.raises(AllocationError, match="list of quantizers is empty"):
        Options(quantizers=())


@pytest.mark.parametrize("template", ["int8-g32", "int8-g32-s8"])
def test_a_group_of_the_template_reaches_the_file(network, tmp_path, template):
    template = Format.parse(template)
    options = Options(precisions=(8, 4), templates=(template,), quantizers=("gptq",))
    found = search(network, NextToken(network), budget=BUDGET, output=tmp_path, options=options)
    assert {replace(fmt, bits=8) for fmt in found.allocation.formats if fmt.is_integer} == {template}
    check_packed(tmp_path, found, network)
