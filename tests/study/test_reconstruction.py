"""Studies whose finalists are reconstructed, and the learned rounding in the run folder."""

import json
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from networks.encoder import SpikingEncoder
from networks.spikegpt import random_spikegpt, skewed_spikegpt
from networks.tasks import Agreement, NextToken

from qslm import artifact
from qslm.allocation import RECONSTRUCTED, Allocation
from qslm.anatomy.find import find_anatomy
from qslm.budget import Budget
from qslm.calibration.calls import Call
from qslm.errors import LedgerError, StudyError, TaskError
from qslm.evaluation import Evaluator, Ledger
from qslm.evaluation.reconstruction import _descend
from qslm.formats import Format
from qslm.search import Options
from qslm.study import search
from qslm.study.folder import RECONSTRUCTIONS
from qslm.study.packing import write_packed
from qslm.study.reconstructing import PARTIAL, next_finalist, stored_learned
from qslm.study.subject import Subject

ANY = Budget(None, None, "relative", prefer="score", mu=1000.0)
OPTIONS = Options(precisions=(4, 3, 2), templates=(Format.parse("int8-g32"),), reconstruct=1)


class Calibrated(NextToken):
    """With a split of its own to calibrate on."""

    def __init__(self, model):
        super().__init__(model)
        self.splits["calibrate"] = super().batches("report")


@pytest.fixture(scope="module")
def network():
    return random_spikegpt(vocabulary=32, width=32, layers=2)


@pytest.fixture(scope="module")
def run(network, tmp_path_factory):
    found = tmp_path_factory.mktemp("reconstruction") / "run"
    search(network, Calibrated(network), budget=ANY, output=found, options=OPTIONS)
    return found


def packed(folder, like):
    model = random_spikegpt(vocabulary=32, width=32, layers=2, seed=5)
    model.load_state_dict(artifact.read(folder).state_dict())
    return model


def answers(model, task):
    with torch.inference_mode():
        return model(torch.cat(task.batches("report")))


def test_a_finalist_is_measured_again_with_learned_rounding_under_a_key_of_its_own(run):
    lines = json.loads((run / "study.json").read_text())["tiers"]
    learned = [line for line in lines if line["tier"] == "reconstruct"]
    (base,) = [one for one in lines if one["tier"] != "reconstruct" and one["note"] == learned[0]["note"]]
    assert len(learned) == 1 and learned[0]["key"] != base["key"]
    assert abs(learned[0]["bytes"] - base["bytes"]) < 200  # the header names another quantizer
    assert learned[0]["value"] != base["value"]


def check_packed(run, network, folder):
    """Pack the reconstructed allocation of a study: the packed model answers as what was measured, bit for bit."""
    task, anatomy = Calibrated(network), find_anatomy(network)
    with Ledger.read(run / "ledger.sqlite") as ledger:
        (row,) = (row for row in ledger.rows("search") if row.tier == "reconstruct")
    allocation = Allocation.from_json(anatomy, row.allocation)
    learned = stored_learned(run, allocation)
    with Evaluator(network, anatomy, task) as evaluator:
        evaluator.learned.update(learned)
        assert evaluator.measure(allocation, "search").value == row.evaluation.value
        measured = answers(network, task)
    write_packed(folder, Subject.of(network), allocation, None, learned)
    assert torch.equal(answers(packed(folder, network), task), measured)
    assert artifact.read(folder).manifest.quantizer.startswith(RECONSTRUCTED)


def test_the_packed_model_answers_as_measured_bit_for_bit(run, network, tmp_path):
    check_packed(run, network, tmp_path / "packed")


def test_a_study_that_goes_on_learns_nothing_again(run, network, tmp_path, monkeypatch):
    again = shutil.copytree(run, tmp_path / "again")
    monkeypatch.setattr("qslm.study.reconstructing.reconstruct", None)
    search(network, Calibrated(network), budget=ANY, output=again, options=OPTIONS)
    one, other = ((folder / "artifact" / "model.safetensors").read_bytes() for folder in (run, again))
    assert one == other


def test_a_study_that_was_killed_goes_on_with_the_block_in_flight(run, network, tmp_path, monkeypatch):
    """Killed while it learned the second block, which is the only one that is learned again; the bytes are the same."""
    learned, again = [], tmp_path / "again"

    def descend(*arguments, most=None):
        learned.append(arguments[-1])
        if most is not None and len(learned) > most:
            raise KeyboardInterrupt
        return _descend(*arguments)

    monkeypatch.setattr("qslm.evaluation.reconstruction._descend", partial(descend, most=1))
    with pytest.raises(KeyboardInterrupt):
        search(network, Calibrated(network), budget=ANY, output=again, options=OPTIONS)
    (path,) = (again / RECONSTRUCTIONS).iterdir()
    assert path.suffix == PARTIAL and len(learned) == 2
    damaged = shutil.copytree(again, tmp_path / "damaged") / RECONSTRUCTIONS / path.name
    damaged.write_bytes(damaged.read_bytes().replace(b"flips", b"flaps"))
    altered = shutil.copytree(again, tmp_path / "altered") / RECONSTRUCTIONS / path.name
    altered.write_bytes(altered.read_bytes()[:-1] + bytes([altered.read_bytes()[-1] ^ 1]))

    monkeypatch.setattr("qslm.evaluation.reconstruction._descend", descend)
    started = learned[:]
    for there, blocks in ((again, started[1:]), (damaged.parents[1], started), (altered.parents[1], started)):
        learned.clear()
        search(network, Calibrated(network), budget=ANY, output=there, options=OPTIONS)
        assert learned == blocks
        (one,), (other,) = (sorted((folder / RECONSTRUCTIONS).iterdir()) for folder in (run, there))
        assert one.name == other.name and one.read_bytes() == other.read_bytes()


def test_the_same_command_learns_the_same_bytes(run, network, tmp_path):
    search(network, Calibrated(network), budget=ANY, output=tmp_path / "second", options=OPTIONS)
    (one,), (other,) = (sorted((folder / RECONSTRUCTIONS).iterdir()) for folder in (run, tmp_path / "second"))
    assert one.name == other.name and one.read_bytes() == other.read_bytes()


def test_learned_rounding_that_was_lost_is_learned_again_and_must_be_the_same(run, network, tmp_path, monkeypatch):
    again = shutil.copytree(run, tmp_path / "again")
    (path,) = (again / RECONSTRUCTIONS).iterdir()
    before = path.read_bytes()
    path.write_bytes(b"x")
    search(network, Calibrated(network), budget=ANY, output=again, options=OPTIONS)
    assert path.read_bytes() == before
    path.unlink()
    monkeypatch.setattr("qslm.evaluation.reconstruction.RATE", 0.05)
    with pytest.raises(LedgerError, match="another reconstruction"):
        search(network, Calibrated(network), budget=ANY, output=again, options=OPTIONS)


def test_learned_rounding_that_was_changed_or_removed_is_refused(run, network, tmp_path):
    again = shutil.copytree(run, tmp_path / "again")
    (path,) = (again / RECONSTRUCTIONS).iterdir()
    with Ledger.read(again / "ledger.sqlite") as ledger:
        (row,) = (row for row in ledger.rows("search") if row.tier == "reconstruct")
    allocation = Allocation.from_json(find_anatomy(network), row.allocation)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StudyError, match="not as the study has written it"):
        stored_learned(again, allocation)
    path.unlink()
    with pytest.raises(StudyError):
        stored_learned(again, allocation)


@pytest.mark.parametrize("quantizer", ["gptq", "awq_gptq"])
def test_scaled_columns_stay_scaled(tmp_path, quantizer):
    network = skewed_spikegpt(vocabulary=32, width=32, layers=2)
    options = replace(OPTIONS, precisions=(3, 2), quantizers=(quantizer,))
    search(network, Calibrated(network), budget=ANY, output=tmp_path / "run", options=options)
    check_packed(tmp_path / "run", network, tmp_path / "packed")


def test_rounding_is_not_learned_on_the_text_that_judges_it(network, tmp_path):
    with pytest.raises(StudyError, match="no calibration text"):
        search(network, NextToken(network), budget=ANY, output=tmp_path, options=OPTIONS)


def test_a_network_whose_neurons_are_unknown_is_refused_before_anything_is_measured(tmp_path):
    network = SpikingEncoder()
    task = Agreement(network)
    task.splits["calibrate"] = task.splits["report"]
    options = Options(precisions=(8, 4), reconstruct=1)
    budget = Budget(None, 20.0, "points", prefer="score", mu=10.0)
    with pytest.raises(StudyError, match="SpikingEncoder cannot be worked on block by block"):
        search(network, task, budget=budget, output=tmp_path / "run", options=options)
    assert not (tmp_path / "run").exists()


def test_an_empty_calibration_text_is_refused_before_anything_is_measured(network, tmp_path):
    task = Calibrated(network)
    task.splits["calibrate"] = []
    with pytest.raises(TaskError, match="has 0 tokens"):
        search(network, task, budget=ANY, output=tmp_path / "run", options=OPTIONS)
    assert not (tmp_path / "run").exists()


def test_another_calibration_text_is_refused_in_the_same_folder(run, network, tmp_path):
    again = shutil.copytree(run, tmp_path / "again")
    task = Calibrated(network)
    task.splits["calibrate"] = task.splits["calibrate"][:1] * 2
    with pytest.raises(LedgerError, match="another calibration text"):
        search(network, task, budget=ANY, output=again, options=OPTIONS)


def test_learning_that_fails_leaves_the_answer_of_the_search(network, tmp_path, monkeypatch):
    monkeypatch.setattr("qslm.evaluation.reconstruction.RATE", float("nan"))
    selection = search(network, Calibrated(network), budget=ANY, output=tmp_path, options=OPTIONS)
    assert not selection.allocation.is_reconstructed and (tmp_path / "artifact" / "model.safetensors").is_file()


def test_no_time_for_a_finalist_is_said(network, tmp_path):
    options = replace(OPTIONS, max_seconds=1e-6)
    assert search(network, Calibrated(network), budget=ANY, output=tmp_path, options=options).stopped == "seconds"


def judged(name, size, bound, accepted=False, tier="front"):
    allocation = SimpleNamespace(
        key=name,
        is_reconstructed=False,
        formats=(Format.parse("int4"),),
        reconstructed=lambda: SimpleNamespace(key=""),
    )
    return SimpleNamespace(
        allocation=allocation,
        tier=tier,
        verdict=SimpleNamespace(memory_ok=True, accepted=accepted),
        evaluation=SimpleNamespace(file_bytes=size, footprint_file=size),
        comparison=SimpleNamespace(bound=bound, loss=0.0),
    )


def finalist(all_, chosen):
    judge = SimpleNamespace(budget=Budget(None, 1.0, "relative"), choose=lambda _: chosen)
    found = next_finalist(judge, all_)
    return None if found is None else found.allocation.key


def test_by_size_the_finalist_is_the_smallest_that_nearly_keeps_the_limit_or_comes_closest_to_it():
    a, far = judged("a", 100, 0.5, True), [judged("b", 90, 1.2), judged("c", 80, 1.9), judged("d", 120, 0.1, True)]
    assert finalist([a, *far], a) == "b"
    assert finalist([a, *far, judged("e", 99, 1.02), judged("f", 95, 1.09), judged("g", 93, 1.11)], a) == "f"
    assert finalist([a, *far], far[1]) is None
    assert finalist([a, *far], None) == "a"


def test_a_call_is_cut_by_rows_and_tokens():
    ids = torch.arange(12).reshape(4, 3)
    call = Call((ids, None), {"mask": ids > 3, "count": 5, "rows": torch.arange(4)})
    assert (call.shape, call.tokens) == ((4, 3), 12)
    part = call.cut(slice(1, 3), 2)
    assert torch.equal(part.arguments[0], ids[1:3, :2]) and part.arguments[1] is None
    assert torch.equal(part.keywords["mask"], (ids > 3)[1:3, :2]) and part.keywords["count"] == 5
    assert torch.equal(part.keywords["rows"], torch.arange(1, 3))


def test_a_file_in_the_place_of_the_folder_is_told_by_name(network, tmp_path):
    (tmp_path / RECONSTRUCTIONS).write_text("mine")
    with pytest.raises(LedgerError, match=f"Cannot make .*{RECONSTRUCTIONS}"):
        search(network, Calibrated(network), budget=ANY, output=tmp_path, options=OPTIONS)
    assert (tmp_path / RECONSTRUCTIONS).read_text() == "mine"
