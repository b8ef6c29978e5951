"""`qslm energy` on small models, on the shipped one, and on what it must refuse."""

import json
from importlib.resources import files

import pytest

SURE = ("--binary-embedding", "true")


@pytest.fixture
def ask(call, checkpoint, text):
    """The answer as JSON, on the small model."""

    def run(*words, model=checkpoint):
        result = call("energy", model, "--task", "text", "--file", text, "--tokens", 40, "--json", *words)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return run


def totals(found):
    return {(one["scenario"], one["machine"]): one for one in found["accounts"]}


def test_the_account_is_consistent(ask):
    found = ask(*SURE)
    assert found["tokens"] == 40 and found["not_counted"] == []
    assert len(found["accounts"]) == 8
    for one in found["accounts"]:
        layers = one["layers"].values()
        for part in ("compute_pj", "memory_pj", "derived_pj"):
            assert one[part] == pytest.approx(sum(layer[part] for layer in layers))
        assert one["total_pj"] == pytest.approx(one["compute_pj"] + one["memory_pj"])
        assert one["total_pj"] > one["derived_pj"] > 0
    accounts = totals(found)
    for machine in ("ran", "integer", "sparse", "float16"):
        decode, prefill = accounts["decode", machine], accounts["prefill", machine]
        assert prefill["compute_pj"] == pytest.approx(1024 * decode["compute_pj"])
        assert prefill["memory_pj"] < 1024 * decode["memory_pj"]
    assert found["layers"]["blocks.1.att_lif"]["block"] == "attention 1"
    assert found["layers"]["blocks.1.ffn.value"]["zero_inputs"] > 0
    assert found["power"] is None and found["power_missing"]


def test_a_format_makes_it_cheaper(ask):
    wide, narrow = (totals(ask(*SURE, *words))["decode", "ran"] for words in ((), ("--format", "int4-row")))
    assert narrow["memory_pj"] < wide["memory_pj"] / 3
    assert any("int4" in name for name in narrow["operations"])
    chip = totals(ask(*SURE, "--memory", "SRAM 8KB"))["decode", "ran"]
    assert chip["memory_pj"] < wide["memory_pj"] / 20 and chip["compute_pj"] == wide["compute_pj"]


def test_an_artifact_is_accounted_by_its_own_bits_and_a_study_by_its_candidates(
    ask, call, refused, checkpoint, classifier, table, text, tmp_path_factory
):
    run = tmp_path_factory.mktemp("runs") / "own"
    words = ("--max-rise", "50%", "--precisions", "8 4", "--max-evaluations", 4, "--context", 16, "--windows", 40)
    done = call("search", checkpoint, "--task", "text", "--file", text, *SURE, *words, "-o", run)
    assert done.exit_code == 0, done.stderr
    packed = totals(ask(model=run / "artifact"))["decode", "ran"]
    assert any("int4" in name or "int8" in name for name in packed["operations"])
    found = ask(*SURE, "--study", run)
    candidates = found["candidates"]
    assert len(candidates) > 1
    baseline = max(candidates, key=lambda one: one["bytes"])
    assert baseline["decode"]["total_pj"] == pytest.approx(totals(found)["decode", "ran"]["total_pj"])
    cheapest = min(candidates, key=lambda one: one["bytes"])
    assert cheapest["decode"]["memory_pj"] < baseline["decode"]["memory_pj"]
    selected = json.loads((run / "selection.json").read_text())["selected"]["key"]
    (own,) = (one for one in candidates if one["key"] == selected)
    assert own["decode"]["memory_pj"] == pytest.approx(packed["memory_pj"], rel=0.01)  # activity differs a little
    shown = call("energy", checkpoint, "--task", "text", "--file", text, "--tokens", 8, *SURE, "--study", run)
    assert "candidates" in shown.stdout, shown.stderr
    other = ("energy", classifier, "--task", "labelled", "--file", table, *SURE, "--study", run)
    assert "other sites" in refused(*other)


def test_the_tables_say_what_there_is(call, checkpoint, text):
    words = ("energy", checkpoint, "--task", "text", "--file", text, "--tokens", 20, *SURE)
    shown = call(*words).stdout
    for text_ in ("decode", "prefill", "integers", "FP16", "attention 1", "firing rate", "No power was measured."):
        assert text_ in shown
    assert "blocks.0.att.key" not in shown
    assert "blocks.0.att.key" in call(*words, "--layers").stdout


def test_a_classifier_is_accounted(call, classifier, table):
    result = call("energy", classifier, "--task", "labelled", "--file", table, "--tokens", 60, "--json", *SURE)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert "classifier" in found["layers"] and found["not_counted"] == []


def test_the_shipped_model_is_accounted(call, text):
    result = call("energy", "spikegpt-mini", "--task", "text", "--file", text, "--tokens", 64, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    rates = [one["firing_rate"] for path, one in found["layers"].items() if path.endswith("_lif")]
    assert len(rates) == 12 and all(0.02 < rate < 0.6 for rate in rates)
    decode = totals(found)["decode", "float16"]
    (weights,) = (one for one in decode["bytes"] if one["what"] == "weights")
    parameters = json.loads(call("inspect", "spikegpt-mini", "--json").stdout)["parameters"]
    assert weights["bytes"] == 2 * (parameters - 4096 * 256)  # of the embedding a token reads one row


def test_a_table_of_ones_own_counts(ask, tmp_path):
    own = json.loads((files("qslm.energy") / "tables" / "45nm.json").read_text())
    own["memory"]["DRAM"]["pj_per_byte"] = 0
    (tmp_path / "own.json").write_text(json.dumps(own))
    free = totals(ask(*SURE, "--table", tmp_path / "own.json"))["decode", "ran"]
    assert free["memory_pj"] < totals(ask(*SURE))["decode", "ran"]["memory_pj"] / 10


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--table", "none.json"), "none.json"),
        (("--memory", "L2"), "no memory 'L2'"),
        (("--format", "int9"), "of 9 bits"),
        (("--activations", "int8"), "int8"),
        (("--study", "nowhere"), "nowhere"),
        (("--task", "dreams"), "dreams"),
    ],
)
def test_what_cannot_be_is_refused(refused, checkpoint, text, words, said):
    assert said in refused("energy", checkpoint, "--task", "text", "--file", text, *SURE, *words)
