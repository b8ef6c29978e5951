"""Studies with a quantizer whose scales fold into other sites."""

import json

import pytest
import torch
from networks.encoder import SpikingEncoder
from networks.spikegpt import skewed_spikegpt
from networks.tasks import Agreement, NextToken

from qslm import artifact
from qslm.anatomy.find import find_anatomy
from qslm.budget import Budget
from qslm.errors import AllocationError
from qslm.evaluation import Evaluator, Ledger
from qslm.evaluation.inputs import StoredInputs
from qslm.formats import FLOAT16, Format
from qslm.quantizers import SCALING, RoundedSites, fold, folds_of
from qslm.search import Options
from qslm.study import pack, search, select
from qslm.study.folder import INPUTS

BUDGET = Budget(None, 0.5, "relative")
PRECISIONS = (8, 4, 3, 2)


@pytest.fixture(scope="module")
def network():
    return skewed_spikegpt(vocabulary=32, width=32, layers=2)


def content(run):
    return (run / "artifact" / "model.safetensors").read_bytes()


def packed_network(run, network):
    model = skewed_spikegpt(vocabulary=32, width=32, layers=2, seed=5)
    model.load_state_dict(artifact.read(run).state_dict())
    return model


def logits_as_measured(run, selection, network, ids, task=NextToken):
    """Those of the weights that the evaluator writes into the live network."""
    inputs = StoredInputs(run / INPUTS) if (run / INPUTS).is_file() else None
    with Evaluator(network, find_anatomy(network), task(network), inputs=inputs) as evaluator:
        evaluator.apply(selection.allocation)
        with torch.inference_mode():
            return network(ids)


@pytest.mark.parametrize("quantizers", [("awq",), ("awq_gptq",), ("gptq", "awq", "clip"), ("awq", "awq_gptq", "hqq")])
def test_the_packed_model_gives_the_logits_that_were_measured_bit_for_bit(network, tmp_path, quantizers):
    options = Options(precisions=PRECISIONS, quantizers=quantizers, vectors=FLOAT16)
    selection = search(network, NextToken(network), budget=BUDGET, output=tmp_path, options=options)
    assert set(selection.allocation.quantizers) & SCALING
    model = packed_network(tmp_path / "artifact", network)
    ids = torch.cat(NextToken(network).batches("report"))
    with torch.inference_mode():
        found = model(ids)
    assert torch.equal(found, logits_as_measured(tmp_path, selection, network, ids))
    scaled = [name for name, one in StoredInputs(tmp_path / INPUTS).items() if one.exponents is not None]
    effective = RoundedSites(network.state_dict(), selection.allocation, StoredInputs(tmp_path / INPUTS))
    assert any(not torch.equal(model.state_dict()[name], effective[name].dequantize()) for name in scaled)
    assert artifact.verify(tmp_path / "artifact")


def test_what_reads_the_same_channels_is_scaled_or_not_as_one_whatever_is_proposed(network, tmp_path):
    options = Options(precisions=PRECISIONS, quantizers=("gptq", "awq", "awq_gptq", "clip"))
    search(network, NextToken(network), budget=BUDGET, output=tmp_path, options=options)
    with Ledger.read(tmp_path / "ledger.sqlite") as ledger:
        tried = [json.loads(row.allocation)["quantizer"] for row in ledger.rows("search") if row.tier != "baseline"]
    inputs, seen = StoredInputs(tmp_path / INPUTS), set()
    for one in folds_of(network, find_anatomy(network)):
        for names in tried if inputs[one.consumers[0]].exponents is not None else ():
            named = [names[name] if isinstance(names, dict) else names for name in one.consumers]
            assert len({name in SCALING for name in named}) == 1
            seen |= set(named)
    assert seen & SCALING


def test_the_same_call_gives_the_same_bytes_also_with_workers_and_for_another_budget(network, tmp_path):
    options = Options(precisions=PRECISIONS, quantizers=("awq",))
    first, second = tmp_path / "one", tmp_path / "two"
    search(network, NextToken(network), budget=BUDGET, output=first, options=options)
    search(network, NextToken(network), budget=BUDGET, output=second, options=options, workers=2)
    assert content(first) == content(second)
    answer = select(first, max_rise="90%")
    digests = {pack(answer, tmp_path / name, network) for name in ("packed", "again")}
    assert len(digests) == 1


@pytest.mark.parametrize("strategy", ["uniform", "tiered", "greedy"])
def test_other_strategies_scale_what_they_round_beside_floats(network, tmp_path, strategy):
    options = Options(precisions=(8, 3), quantizers=("awq", "clip"), strategy=strategy)
    selection = search(network, NextToken(network), budget=BUDGET, output=tmp_path, options=options)
    ids = torch.cat(NextToken(network).batches("report"))
    with torch.inference_mode():
        found = packed_network(tmp_path / "artifact", network)(ids)
    assert torch.equal(found, logits_as_measured(tmp_path, selection, network, ids))


def test_a_classifier(tmp_path):
    network = skewed_spikegpt(vocabulary=40, width=32, layers=2, classes=2)
    task = Agreement(network)
    options = Options(precisions=(8, 6), quantizers=("awq",))
    selection = search(network, task, budget=Budget(None, 20.0, "points"), output=tmp_path, options=options)
    model = skewed_spikegpt(vocabulary=40, width=32, layers=2, classes=2, seed=5)
    model.load_state_dict(artifact.read(tmp_path / "artifact").state_dict())
    ids = task.batches("report")[0][0]
    with torch.inference_mode():
        assert torch.equal(model(ids), logits_as_measured(tmp_path, selection, network, ids, Agreement))


def test_a_network_that_does_not_say_where_scales_fold_is_refused(tmp_path):
    network = SpikingEncoder()
    with pytest.raises(AllocationError, match="awq scales columns, and SpikingEncoder does not say") as caught:
        search(
            network,
            Agreement(network),
            budget=Budget(None, 10.0, "points"),
            output=tmp_path,
            options=Options(precisions=(8,), quantizers=("clip", "awq")),
        )
    assert "folds()" in caught.value.remedy and not (tmp_path / INPUTS).exists()


def test_one_scale_a_tensor_is_refused_before_anything_is_measured():
    templates = (Format.parse("int8-row"), Format.parse("int8-tensor"))
    with pytest.raises(AllocationError, match="awq changes scales of rows"):
        Options(quantizers=("gptq", "awq"), templates=templates)
    assert Options(quantizers=("gptq",), templates=templates).quantizers == ("gptq",)


def test_nothing_is_folded_where_nothing_was_scaled(network):
    anatomy = find_anatomy(network)
    allocation = Options(quantizers=("clip",)).uniform(anatomy, Format.parse("int4-row"))
    moved = fold(RoundedSites(network.state_dict(), allocation), folds_of(network, anatomy))
    assert not moved.rows and not moved.columns
