import hashlib
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from networks.encoder import SpikingEncoder
from networks.listeners import Talkative
from networks.tasks import Agreement, NextToken
from networks.tied import TiedNetwork

from qslm import artifact
from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.budget import Budget
from qslm.errors import AllocationError, BudgetError, LedgerError, StudyError
from qslm.evaluation import Evaluator, Ledger, evaluate
from qslm.formats import FLOAT16, Format
from qslm.search import Options, Outcome, TieredSearch
from qslm.study import expecting, identity, search, select
from qslm.units import format_bytes

DROP = Budget(max_bytes=None, max_loss=12.0, kind="points")
RISE = Budget(max_bytes=None, max_loss=0.05, kind="relative")


def tiered(**options):
    """The paper's search, every evaluation whole."""
    return Options(strategy="tiered", early=False, **options)


def read(run, name):
    return json.loads((run / name).read_text())


@pytest.fixture
def encoder():
    model = SpikingEncoder()
    return model, Agreement(model)


def test_a_whole_study_on_a_bidirectional_spiking_encoder(encoder, tmp_path):
    model, task = encoder
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    listener = Talkative()
    selection = search(model, task, budget=DROP, output=tmp_path, options=tiered(), progress=listener)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    content, study = read(tmp_path, "selection.json"), read(tmp_path, "study.json")
    assert content["baseline"]["metric"] == content["selected"]["metric"] == "accuracy"
    for name in ("baseline", "selected"):
        assert content[name]["low"] <= content[name]["value"] <= content[name]["high"]
    file_bytes = (tmp_path / "artifact" / "model.safetensors").stat().st_size
    assert content["selected"]["bytes"] == file_bytes == selection.selected.bytes
    assert content["selected"]["saving"] == 1 - content["selected"]["tensor_bytes"] / (
        4 * sum(p.numel() for p in model.parameters())
    )
    assert content["selected"]["saving_file"] == 1 - file_bytes / content["baseline"]["bytes"]
    assert content["selected"]["score"] == pytest.approx(100 * content["selected"]["value"])
    assert content["difference"]["conclusion"] in ("met", "not shown", "broken")
    assert content["difference"]["split"] == "report"

    tiers = study["tiers"]
    assert {"baseline", "global", "sensitivity", "block", "module"} == {line["tier"] for line in tiers}
    assert content["evaluations"] == len(tiers) + 2
    packed = hashlib.sha256((tmp_path / "artifact" / "model.safetensors").read_bytes()).hexdigest()
    assert content["artifact"] == {"sha256": packed} and selection.packed == packed
    assert content["tokens_forwarded"] == 720 * (len(tiers) + 2)
    accepted = [line for line in tiers if line["quality_ok"] and line["memory_ok"] and line["tier"] != "baseline"]
    assert content["selected"]["key"] == min(accepted, key=lambda line: (line["bytes"], line["loss"]))["key"]
    assert all(line["bound"] <= 12.0 for line in accepted) and len(accepted) < len(tiers) - 1
    told = [text for text in listener.heard if text.lstrip()[0].isdigit()]
    assert len(told) == len(tiers) - 1
    assert any("accepted" in text for text in told) and any("too lossy" in text for text in told)


def test_the_packed_model_measures_what_the_search_measured(encoder, tmp_path):
    model, task = encoder
    search(model, task, budget=DROP, output=tmp_path)
    packed = SpikingEncoder(seed=9)
    packed.load_state_dict(artifact.read(tmp_path / "artifact").state_dict())
    content = read(tmp_path, "selection.json")
    with Ledger.read(tmp_path / "ledger.sqlite") as ledger:
        for split in ("search", "report"):
            stored = ledger.get(content["selected"]["key"], split)
            assert np.array_equal(evaluate(packed, task, split).losses.values, stored.losses.values)


def test_what_the_strategy_was_told_is_the_paired_bound(encoder, tmp_path):
    model, task = encoder
    search(model, task, budget=DROP, output=tmp_path, options=tiered())
    lines = {line["key"]: line for line in read(tmp_path, "study.json")["tiers"]}
    strategy, asked = TieredSearch(find_anatomy(model)), 0
    while (proposal := strategy.ask()) is not None:
        line = lines[proposal.allocation.key]
        assert line["quality_ok"] == (line["bound"] <= 12.0)
        strategy.tell(proposal, Outcome(line["quality_ok"], line["memory_ok"], line["loss"]))
        asked += 1
    assert asked == len(lines) - 1


def test_a_whole_study_on_a_network_with_a_tied_head(tmp_path):
    model = TiedNetwork()
    task = NextToken(model)
    selection = search(model, task, budget=RISE, output=tmp_path)
    sites = read(tmp_path, "study.json")["anatomy"]["sites"]
    tied = next(site for site in sites if site["name"] == "emb.weight")
    assert tied["aliases"] == ["head.weight"] and "head.weight" not in {site["name"] for site in sites}
    assert "head.weight" not in read(tmp_path, "selection.json")["selected"]["allocation"]["sites"]
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert selection.selected.saving == 1 - selection.selected.tensor_bytes / (4 * weights)
    loaded = TiedNetwork(seed=5)
    loaded.load_state_dict(artifact.read(tmp_path / "artifact").state_dict())
    assert loaded.head.weight is loaded.emb.weight
    measured = evaluate(loaded, task, "report")
    assert measured.value == selection.selected.figures.value
    assert selection.selected.score == measured.value  # mu is 0
    assert selection.search_difference.bound <= 0.05 and selection.difference.kind == "relative"


@pytest.mark.parametrize("options", [Options(), tiered(), Options(strategy="tiered")])
def test_a_replay_measures_nothing_and_answers_the_same(encoder, tmp_path, monkeypatch, options):
    model, task = encoder
    first = search(model, task, budget=DROP, output=tmp_path, options=options)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    monkeypatch.setattr(Evaluator, "measure", None)
    monkeypatch.setattr(expecting, "estimate_costs", None)
    second = search(model, task, budget=DROP, output=tmp_path, options=options)
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert second.seconds == first.seconds > 0


def test_memory_alone_leads_to_the_largest_that_fits_by_score(encoder, tmp_path):
    model, task = encoder
    smallest = Allocation.uniform(find_anatomy(model), TieredSearch(find_anatomy(model)).ask().allocation.formats[0])
    budget = Budget(smallest.footprint().file, None, "points", prefer="score", mu=0.0)
    selection = search(model, task, budget=budget, output=tmp_path)
    assert selection.selected.figures.bytes <= budget.max_bytes
    lines = read(tmp_path, "study.json")["tiers"][1:]
    assert selection.search_selected.value == max(line["value"] for line in lines if line["memory_ok"])
    assert selection.difference.conclusion == "no limit" and selection.difference.limit is None


def test_an_impossible_budget_is_refused_before_anything_is_done(encoder, tmp_path):
    model, task = encoder
    task.splits.clear()
    run = tmp_path / "run"
    with pytest.raises(BudgetError, match="nearest possible budget is"):
        search(model, task, budget=Budget(1000, 1.0, "points"), output=run)
    assert not run.exists()
    with pytest.raises(BudgetError, match="no points to drop"):
        search(TiedNetwork(), NextToken(TiedNetwork()), budget=Budget(None, 1.0, "points"), output=run)


def test_where_nothing_is_accepted_the_closest_is_named_and_the_ledger_stays(encoder, tmp_path):
    model, task = encoder
    smallest = Options(precisions=(16, 2)).smallest(find_anatomy(model)).footprint().file + 200
    run = tmp_path / "run"
    with pytest.raises(StudyError, match=r"None of \d+ evaluations keeps the budget .*closest is 'whole network at"):
        search(
            model,
            task,
            budget=Budget(smallest, 0.0, "points", "bound"),
            output=run,
            options=tiered(precisions=(16, 2)),
        )
    assert not (run / "selection.json").exists() and not (run / "artifact").exists()
    tried = len(read(run, "study.json")["tiers"])
    selection = search(
        model, task, budget=Budget(smallest, 90.0, "points"), output=run, options=tiered(precisions=(16, 2))
    )
    assert selection.evaluations > 2 and tried > 2


def test_where_nothing_can_be_lowered_what_is_exact_is_the_answer(encoder, tmp_path):
    model, task = encoder
    exact = Allocation.float32(find_anatomy(model)).footprint().file
    checkpoint = SimpleNamespace(name="x", model=model, tokenizer=None, config={}, digest="0", file_bytes=exact + 1)
    budget = Budget(None, 0.0, "points")
    selection = search(checkpoint, task, budget=budget, output=tmp_path, options=Options(precisions=(1,)))
    assert selection.difference.loss == selection.difference.high == 0.0
    assert {str(fmt) for _, fmt in selection.allocation.items()} <= {"float32", "sign"}


@pytest.mark.parametrize("strategy", ["knapsack", "greedy"])
def test_what_is_no_smaller_than_the_checkpoints_file_is_not_even_tried(tmp_path, strategy):
    model = TiedNetwork()
    eight = Allocation.uniform(find_anatomy(model), Format("integer", 8), quantizer="clip").footprint().file
    checkpoint = SimpleNamespace(name="eight", model=model, tokenizer=None, config={}, digest="0", file_bytes=eight + 1)
    options = Options(precisions=(16, 8), strategy=strategy)
    budget = Budget(None, 0.5, "relative", prefer="score", mu=0.0)  # the best score is that of 16 bits everywhere
    selection = search(checkpoint, NextToken(model), budget=budget, output=tmp_path, options=options)
    assert selection.selected.figures.bytes == eight


def test_what_saves_no_byte_of_the_checkpoints_file_is_no_answer(encoder, tmp_path):
    """Of a float16 file the float32 network was once the answer: twice as large, and the promise "met"."""
    model, task = encoder
    half = Allocation.uniform(find_anatomy(model), FLOAT16, vectors=FLOAT16).footprint().file
    checkpoint = SimpleNamespace(name="half", model=model, tokenizer=None, config={}, digest="0", file_bytes=half)
    exact = Budget(None, 0.0, "points")
    with pytest.raises(StudyError) as error:
        search(checkpoint, task, budget=exact, output=tmp_path, options=Options(precisions=(1,)))
    assert "less than the checkpoint's file, " + format_bytes(half) in error.value.problem
    assert "the closest is " in error.value.problem
    assert not (tmp_path / "selection.json").exists() and not (tmp_path / "artifact").exists()
    floats = read(tmp_path, "study.json")["tiers"][0]
    assert floats["loss"] == 0.0 and floats["bytes"] == half  # the baseline is the checkpoint's own file
    with pytest.raises(StudyError, match="None of"):
        select(tmp_path)
    drop = re.search(r"--max-drop ([\d.]+)", error.value.remedy)[1]
    assert select(tmp_path, max_drop=drop).selected.bytes < half


def test_a_limit_that_ran_out_is_said(encoder, tmp_path):
    model, task = encoder
    listener = Talkative()
    selection = search(model, task, budget=DROP, output=tmp_path, options=tiered(max_evaluations=2), progress=listener)
    assert selection.stopped == "evaluations" == read(tmp_path, "selection.json")["stopped"]
    assert any("--max-evaluations 2 is reached" in text for text in listener.heard)
    assert select(tmp_path).stopped == "evaluations"
    whole = search(model, task, budget=DROP, output=tmp_path, options=tiered(max_evaluations=10_000))
    assert whole.stopped is None and whole.selected.bytes < selection.selected.bytes
    assert select(tmp_path).stopped is None


def test_where_nothing_is_accepted_under_a_limit_the_remedy_is_to_raise_it(encoder, tmp_path):
    model, task = encoder
    smallest = Options().smallest(find_anatomy(model)).footprint().file
    with pytest.raises(StudyError, match="Raise --max-evaluations"):
        search(model, task, budget=Budget(smallest, 30.0, "points"), output=tmp_path, options=tiered(max_evaluations=1))


def test_the_remedy_lets_the_closest_in(encoder, tmp_path):
    model, task = encoder
    options = Options(precisions=(8, 2))
    smallest = options.smallest(find_anatomy(model)).footprint().file
    with pytest.raises(StudyError) as refused:
        search(model, task, budget=Budget(smallest + 200, 5.0, "points"), output=tmp_path, options=options)
    drop = re.search(r"--max-drop ([\d.]+)", refused.value.remedy)
    size = re.search(r"--max-memory (\d+)B", refused.value.remedy)
    assert drop or size
    limits = {"max_drop": drop and drop[1], "max_memory": size and int(size[1])}
    assert select(tmp_path, **limits).selected.note in str(refused.value)


def test_a_limit_that_the_sample_cannot_show_is_refused(encoder, tmp_path):
    model, task = encoder
    with pytest.raises(BudgetError, match=r"of 120 sentences still has a bound of 2\.21 points, more than the limit"):
        search(model, task, budget=Budget(None, 0.1, "points"), output=tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda model, task: model.emb.weight.data.add_(1e-3), "checkpoint.digest"),
        (lambda model, task: task.splits["search"].reverse(), "data.search"),
        (lambda model, task: setattr(task, "metric", "share"), "task.metric"),
        (lambda model, task: torch.set_num_threads(torch.get_num_threads() + 1), "machine.threads"),
    ],
)
def test_another_study_in_the_same_folder_is_refused(encoder, tmp_path, change, named):
    model, task = encoder
    threads = torch.get_num_threads()
    search(model, task, budget=DROP, output=tmp_path, options=tiered(max_evaluations=1))
    kept = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    change(model, task)
    try:
        with pytest.raises(LedgerError, match=named):
            search(model, task, budget=DROP, output=tmp_path, options=tiered(max_evaluations=1))
    finally:
        torch.set_num_threads(threads)
    assert kept == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


def test_two_studies_at_once_in_one_folder_are_refused(encoder, tmp_path):
    model, task = encoder

    class Impatient(Talkative):
        def message(self, text):
            with pytest.raises(LedgerError, match="Another study is running"):
                search(model, task, budget=DROP, output=tmp_path, options=tiered(max_evaluations=1))
            self.heard.append(text)

    listener = Impatient()
    search(model, task, budget=DROP, output=tmp_path, options=tiered(max_evaluations=1), progress=listener)
    assert len(listener.heard) > 2


def test_a_failed_search_leaves_nothing_of_an_earlier_selection(encoder, tmp_path):
    model, task = encoder
    first = search(model, task, budget=Budget(None, 90.0, "points"), output=tmp_path, options=Options(precisions=(2,)))
    assert first.artifact.is_dir() and (tmp_path / "selection.json").is_file()
    smallest = first.selected.figures.bytes
    with pytest.raises(StudyError, match="None of"):
        search(model, task, budget=Budget(smallest, 0.0, "points"), output=tmp_path, options=Options(precisions=(2,)))
    assert not first.artifact.exists() and not (tmp_path / "selection.json").exists()
    assert read(tmp_path, "study.json")["budget"]["max_loss"] == 0.0


@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_a_rise_of_a_share_is_refused(encoder, tmp_path, kind):
    """`--max-rise 2` on accuracy once allowed 200 points."""
    model, task = encoder
    run, listener = tmp_path / "run", Talkative()
    with pytest.raises(BudgetError, match="--max-drop"):
        search(model, task, budget=Budget(None, 2.0, kind), output=run)
    assert not run.exists()
    task.metric = "exact match"  # a share that only its losses show to be one
    with pytest.raises(BudgetError, match="--max-drop"):
        search(model, task, budget=Budget(None, 2.0, kind), output=run, progress=listener)
    assert not any("global" in text for text in listener.heard)


def test_a_changed_measuring_file_is_named(encoder, tmp_path, monkeypatch):
    model, task = encoder
    files = identity.measuring_files()
    kernels = [name for name in files if name.endswith(".so")]
    assert len(kernels) == 1 and "_native" in kernels[0]
    assert {"models/wkv.py", "tasks/perplexity.py", "allocation.py"} <= files.keys()
    search(model, task, budget=DROP, output=tmp_path / "run", options=tiered(max_evaluations=1))
    for name in (kernels[0], "models/wkv.py"):
        altered = tmp_path / "altered"
        altered.write_bytes(files[name].read_bytes() + b"\n")
        monkeypatch.setattr(identity, "measuring_files", lambda name=name: {**files, name: tmp_path / "altered"})
        identity.code_digest.cache_clear()
        with pytest.raises(LedgerError, match=r"code\.digest was"):
            search(model, task, budget=DROP, output=tmp_path / "run", options=tiered(max_evaluations=1))
    monkeypatch.undo()
    identity.code_digest.cache_clear()
    search(model, task, budget=DROP, output=tmp_path / "run", options=tiered(max_evaluations=1))


def test_weights_that_float32_cannot_hold_are_refused_before_anything_is_done(encoder, tmp_path):
    model, task = encoder
    model.double()
    with torch.no_grad():
        model.classifier.weight += 1e-12
    with pytest.raises(StudyError, match=r"classifier\.weight is float64.*\n.*model\.float\(\)"):
        search(model, task, budget=DROP, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_quantizer_that_there_is_not_is_refused_before_anything_is_done(encoder, tmp_path):
    with pytest.raises(AllocationError, match="magic"):
        search(*encoder, budget=DROP, output=tmp_path / "run", options=Options(quantizers=("magic",)))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_as_small_as_the_smallest_model_file_is_refused_before_anything_is_done(encoder, tmp_path):
    model, task = encoder
    smallest = Options().smallest(find_anatomy(model)).footprint().file

    def opened(file_bytes):
        return SimpleNamespace(
            name="own", model=model, tokenizer=None, digest="0" * 64, file_bytes=file_bytes, config={}, source=None
        )

    with pytest.raises(BudgetError, match=rf"file has {smallest:,} bytes, and the smallest model file {smallest:,}"):
        search(opened(smallest), task, budget=DROP, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(StudyError):  # it is tried, and does not keep the budget
        search(opened(smallest + 1), task, budget=Budget(None, 0.0, "points"), output=tmp_path / "run")


def test_anything_with_the_two_methods_can_be_studied(encoder, tmp_path):
    model, task = encoder

    class Bare:
        def batches(self, split):
            yield from task.batches(split)

        def losses(self, model, batch):
            return task.losses(model, batch)

    own = search(model, Bare(), budget=DROP, output=tmp_path / "own", options=Options(precisions=(8, 4)))
    known = search(model, task, budget=DROP, output=tmp_path / "known", options=Options(precisions=(8, 4)))
    assert own.allocation == known.allocation and own.baseline.metric == "score"
    assert select(tmp_path / "own", task=Bare()).allocation == select(tmp_path / "own").allocation == own.allocation
    assert evaluate(model, Bare()).value == evaluate(model, task).value
