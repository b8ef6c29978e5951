import json
import shutil

import numpy as np
import pytest
from networks.encoder import SpikingEncoder
from networks.tasks import Agreement, NextToken
from networks.tied import TiedNetwork

from qslm.budget import Budget
from qslm.errors import BudgetError, LedgerError, StudyError
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
    with pytest.raises(BudgetError, match="measured so far"):
        select(run, max_memory="1kB")
    smallest = min(line["bytes"] for line in json.loads((run / "study.json").read_text())["tiers"])
    with pytest.raises(BudgetError, match="a search can go lower"):
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
