import json
import shutil

import numpy as np
import pytest
import torch
from networks.encoder import SpikingEncoder
from networks.tasks import Agreement, NextToken
from networks.tied import TiedNetwork

from qslm.anatomy.find import find_anatomy
from qslm.budget import Budget
from qslm.errors import BudgetError, LedgerError, StudyError
from qslm.report import write_report
from qslm.search import Options
from qslm.study import search, select

WHOLE = Options(strategy="tiered", early=False)  # many evaluations, none of which ended early


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    model = SpikingEncoder()
    search(model, Agreement(model), budget=Budget(None, 12.0, "points"), output=folder, options=WHOLE)
    return folder


@pytest.fixture(scope="module")
def tied_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tied")
    model = TiedNetwork()
    search(model, NextToken(model), budget=Budget(None, 0.05, "relative"), output=folder, options=WHOLE)
    return folder


def without_seconds(selection):
    return {key: value for key, value in selection.to_dict().items() if key != "seconds"}


@pytest.mark.parametrize("name", ["run", "tied_run"])
def test_the_same_question_gets_the_same_answer_and_writes_nothing(name, request):
    folder = request.getfixturevalue(name)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    content = json.loads((folder / "selection.json").read_text())
    again = json.loads(json.dumps(without_seconds(select(folder))))
    assert again == {key: value for key, value in content.items() if key != "seconds"}
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_other_limits_get_the_smallest_that_keeps_them(run):
    lines = json.loads((run / "study.json").read_text())["tiers"][1:]
    for drop in (5, 8, 20, 60):
        accepted = [line for line in lines if line["bound"] <= drop]
        assert select(run, max_drop=drop).selected.figures.bytes == min(line["bytes"] for line in accepted)
    by_point = [line for line in lines if line["loss"] <= 12.0]
    assert select(run, decision="point").selected.figures.bytes == min(line["bytes"] for line in by_point)
    sizes = sorted(line["bytes"] for line in lines)
    chosen = select(run, max_memory=f"{sizes[3]}B", max_drop=100, prefer="score", mu=0.0)
    assert chosen.search_selected.value == max(line["value"] for line in lines if line["bytes"] <= sizes[3])


def test_mu_moves_the_choice_from_quality_to_memory(run):
    chosen = [select(run, max_drop=100, prefer="score", mu=mu) for mu in (0.0, 20.0, 1e6)]
    sizes = [one.selected.figures.bytes for one in chosen]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[2]
    assert chosen[2].allocation == select(run, max_drop=100).allocation


def test_giving_mu_asks_for_the_score(run):
    for mu in (0.0, 20.0):
        chosen = select(run, max_drop=100, mu=mu)
        assert chosen.budget.prefer == "score"
        assert chosen.allocation == select(run, max_drop=100, prefer="score", mu=mu).allocation
    kept = select(run, max_drop=100, prefer="smallest", mu=20.0)
    assert kept.allocation == select(run, max_drop=100).allocation and kept.budget.mu == 20.0


def test_an_artifact_that_is_not_the_selected_one_is_refused(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    assert select(folder).packed and select(folder, max_drop=5).packed is None
    with (folder / "artifact" / "model.safetensors").open("ab") as file:
        file.write(b" ")
    with pytest.raises(StudyError, match=r"sha256 .* selection\.json says"):
        select(folder)
    assert select(folder, max_drop=5).packed is None
    (folder / "artifact" / "model.safetensors").unlink()
    with pytest.raises(StudyError, match="cannot be read"):
        select(folder)


def test_what_was_not_measured_on_the_report_split_says_so(run):
    other = select(run, max_drop=5)
    assert other.difference.split == "search" and other.difference.conclusion == "not reported"
    same = select(run)
    assert same.difference.split == "report" and same.difference.conclusion != "not reported"


def test_relative_and_absolute_rises(tied_run):
    baseline = select(tied_run).search_baseline.value
    relative, absolute = select(tied_run, max_rise="3%"), select(tied_run, max_rise=0.03 * baseline)
    assert relative.allocation == absolute.allocation
    assert relative.difference.kind == "relative" and absolute.difference.kind == "absolute"
    assert np.isclose(relative.difference.loss * relative.baseline.value, absolute.difference.loss)


def test_impossible_questions_are_refused(run, tied_run, tmp_path):
    smallest = Options().smallest(find_anatomy(SpikingEncoder())).footprint().file
    with pytest.raises(BudgetError, match=rf"(?s)smallest model file has .*--max-memory {smallest}B") as told:
        select(run, max_memory=smallest - 1)
    assert "search" not in str(told.value)
    smallest = min(line["bytes"] for line in json.loads((run / "study.json").read_text())["tiers"])
    with pytest.raises(BudgetError, match=r"(?s)measured so far .*or search again"):
        select(run, max_memory=smallest, max_drop=5)
    with pytest.raises(StudyError, match=r"None of \d+ evaluations .* less than the checkpoint's file"):
        select(run, max_drop=0)
    with pytest.raises(BudgetError, match="points"):
        select(tied_run, max_drop=1)
    with pytest.raises(BudgetError, match="--max-drop"):
        select(run, max_rise=2)
    with pytest.raises(StudyError, match=r"no .*study\.json"):
        select(tmp_path)


@pytest.mark.parametrize(
    ("content", "error"),
    [("{", StudyError), ("[]", StudyError), ("{}", StudyError), ('{"anatomy": {"sites": [{}]}}', StudyError)],
)
def test_a_damaged_study_is_refused(run, tmp_path, content, error):
    (tmp_path / "study.json").write_text(content)
    (tmp_path / "ledger.sqlite").write_bytes((run / "ledger.sqlite").read_bytes())
    with pytest.raises(error):
        select(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda study: study["checkpoint"].update(bytes=10**9), "checkpoint bytes"),
        (lambda study: study["checkpoint"].update(digest="0" * 64), "checkpoint digest"),
        (lambda study: study["anatomy"]["sites"][0].update(shape=[80, 8]), "anatomy"),
        (lambda study: study["anatomy"]["sites"][0].update(binarized=True), "anatomy"),
        (lambda study: study["task"].update(higher_is_better=False), "task higher_is_better"),
    ],
)
def test_a_study_that_was_changed_is_refused(run, tmp_path, change, told):
    copy = shutil.copytree(run, tmp_path / "run")
    study = json.loads((copy / "study.json").read_text())
    change(study)
    (copy / "study.json").write_text(json.dumps(study))
    for ask in (select, write_report):
        with pytest.raises(StudyError, match=f"not as it was written: its {told} is"):
            ask(copy)


@pytest.mark.parametrize("options", [None, {}, {"template": "int4"}, "x"])
def test_unusable_options_are_refused(run, tmp_path, options):
    copy = shutil.copytree(run, tmp_path / "run")
    study = json.loads((copy / "study.json").read_text())
    (copy / "study.json").write_text(json.dumps({**study, "options": options}))
    with pytest.raises(StudyError, match="options"):
        select(copy)


def test_files_of_two_studies_do_not_mix(run, tied_run, tmp_path):
    (tmp_path / "study.json").write_bytes((tied_run / "study.json").read_bytes())
    (tmp_path / "ledger.sqlite").write_bytes((run / "ledger.sqlite").read_bytes())
    with pytest.raises(StudyError):
        select(tmp_path)
    (tmp_path / "ledger.sqlite").write_bytes(b"x" * 5000)
    with pytest.raises(LedgerError, match="damaged"):
        select(tmp_path)


def test_a_metric_of_ones_own_needs_its_task(tmp_path):
    class Median(Agreement):
        name, metric, unit = "median", "median agreement", "sentence"

        def reduce(self, losses):
            return float(np.mean(losses.values) ** 2)

    model = SpikingEncoder()
    task = Median(model, sentences=30, batch=30)
    made = search(
        model, task, budget=Budget(None, 0.4, "absolute"), output=tmp_path, options=Options(precisions=(8, 4))
    )
    with pytest.raises(StudyError, match="task="):
        select(tmp_path)
    assert without_seconds(select(tmp_path, task=task)) == without_seconds(made)


@pytest.fixture(scope="module")
def early_run(tmp_path_factory):
    """A study of draws whose evaluations ended once it was foretold whether they lose at most 15 points."""
    folder = tmp_path_factory.mktemp("early")
    torch.manual_seed(0)
    model = SpikingEncoder(depth=1, width=8)
    task = Agreement(model, sentences=400, batch=20)
    task.exchangeable = True
    options = Options(strategy="random", max_evaluations=25, precisions=(8, 6, 4, 3, 2))
    search(model, task, budget=Budget(None, 15.0, "points"), output=folder, options=options)
    return folder, model, task, options


def test_under_its_own_budget_nothing_is_undecided(early_run):
    run = early_run[0]
    content = json.loads((run / "selection.json").read_text())
    again = select(run).to_dict()
    assert again["undecided"] == 0 and again["foretold"] is None
    assert json.loads(json.dumps(without_seconds(select(run)))) == {k: v for k, v in content.items() if k != "seconds"}


def test_what_ended_early_is_undecided_or_foretold_but_never_selected(early_run):
    run = early_run[0]
    lines = json.loads((run / "study.json").read_text())["tiers"][1:]
    whole = {line["key"]: line for line in lines if line["complete"]}
    assert whole and len(whole) < len(lines)
    seen = {"undecided": 0, "foretold": 0}
    for drop in (16, 18, 20, 25, 30, 40, 60, 90):
        found = select(run, max_drop=drop)
        assert found.allocation.key in whole
        accepted = [line["bytes"] for line in whole.values() if line["bound"] <= drop]
        assert found.selected.bytes == min(accepted)
        seen["undecided"] += found.undecided
        if found.foretold is not None:
            assert found.foretold.key not in whole and found.foretold.bytes < found.selected.bytes
            seen["foretold"] += 1
        assert found.to_dict()["undecided"] == found.undecided
    assert min(seen.values()) > 0
    assert select(run, max_drop=90).evaluations == len(lines) + 3


def test_searching_again_decides_what_was_open(early_run, tmp_path):
    run, model, task, options = early_run
    copy = shutil.copytree(run, tmp_path / "run")
    before = select(copy, max_drop=25)
    assert before.undecided > 0 or before.foretold is not None
    after = search(model, task, budget=Budget(None, 25.0, "points"), output=copy, options=options)
    again = select(copy)
    assert again.allocation == after.allocation and again.undecided == 0 and again.foretold is None
    assert after.selected.bytes <= before.selected.bytes


def test_by_score_what_ended_early_may_be_better_and_is_counted(early_run):
    found = select(early_run[0], max_drop=90, mu=20.0)
    lines = json.loads((early_run[0] / "study.json").read_text())["tiers"][1:]
    assert found.foretold is None and 0 < found.undecided <= sum(not line["complete"] for line in lines)


def test_where_only_a_foretold_one_keeps_the_budget_the_remedy_is_to_search(early_run):
    run = early_run[0]
    lines = json.loads((run / "study.json").read_text())["tiers"][1:]
    largest = min(line["bytes"] for line in lines if line["complete"]) - 1
    with pytest.raises(StudyError, match="Search again with this budget"):
        select(run, max_drop=90, max_memory=largest)


def test_groups_that_do_not_fit_are_refused(early_run, tmp_path):
    copy = shutil.copytree(early_run[0], tmp_path / "run")
    study = json.loads((copy / "study.json").read_text())
    for early in ({"groups": [1, 2], "looks": 3}, {"groups": "x", "looks": 3}, {"groups": None, "looks": "y"}, None):
        study["early"] = early
        (copy / "study.json").write_text(json.dumps(study))
        with pytest.raises(StudyError):
            select(copy)
