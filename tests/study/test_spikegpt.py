import json

import numpy as np
import pytest
import torch
from networks.spikegpt import random_spikegpt

from qslm import artifact
from qslm.budget import Budget
from qslm.data.tokenizer import train_tokenizer
from qslm.errors import CheckpointError, FormatError, StudyError
from qslm.evaluation import Ledger, evaluate
from qslm.loading.checkpoint import load_checkpoint, load_model
from qslm.search import Options
from qslm.study import pack, search, select
from qslm.tasks import make_task


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny SpikeGPT as a checkpoint on disk, and a text that is its own data."""
    folder = tmp_path_factory.mktemp("checkpoint")
    words = ["the", "river", "runs", "slowly", "past", "a", "small", "town", "and", "people", "there", "like", "water"]
    drawn = torch.randint(len(words), (3000,), generator=torch.Generator().manual_seed(7)).tolist()
    text = " ".join(words[index] for index in drawn)
    (folder / "own.txt").write_text(text)
    train_tokenizer([text], 270).save(str(folder / "tokenizer.json"))
    torch.save(random_spikegpt(vocabulary=270, width=32, layers=2).state_dict(), folder / "model.pth")
    return folder


def opened(folder):
    checkpoint = load_checkpoint(folder, binary_embedding=True)
    checkpoint.model.to("cpu")
    task = make_task(
        "text", tokenizer=checkpoint.tokenizer, config=checkpoint.config, file=folder / "own.txt", windows=12
    )
    return checkpoint, task


def test_a_study_of_spikegpt_ends_in_an_artifact_that_loads_and_measures_the_same(folder, tmp_path):
    checkpoint, task = opened(folder)
    selection = search(
        checkpoint,
        task,
        budget=Budget(None, 0.05, "relative"),
        output=tmp_path,
        options=Options(precisions=(8, 6, 4, 3)),
    )
    study = json.loads((tmp_path / "study.json").read_text())
    assert [check["name"] for check in study["checks"]] == [
        *("deterministic", "no-op", "signs", "recurrent"),
        "overlap search/report",  # of a file of one's own; it has no calibration text
    ]
    assert "runs of 16 words" in study["checks"][4]["finding"]
    assert "spikes differ" in study["checks"][3]["finding"]
    assert study["anatomy"]["blocks"] == ["input", "attention 0", "attention 1", "output"]
    assert str(selection.allocation["emb.weight"]) == "sign"
    assert study["task"]["splits"]["report"]["bits_per_byte"] > 0
    assert selection.baseline.bytes == (folder / "model.pth").stat().st_size

    packed, packed_task = opened_artifact(selection.artifact, folder)
    measured = evaluate(packed.model, packed_task, "report")
    with Ledger.read(tmp_path / "ledger.sqlite") as ledger:
        stored = ledger.get(selection.allocation.key, "report")
    assert np.array_equal(measured.losses.values, stored.losses.values)
    assert packed.file_bytes == selection.selected.bytes == measured.footprint_file
    assert evaluate(load_model(selection.artifact), packed_task).footprint_file == selection.selected.bytes
    assert evaluate(checkpoint.model, task).footprint_file == (folder / "model.pth").stat().st_size
    assert select(tmp_path).allocation == selection.allocation


def test_what_was_selected_again_is_packed_into_a_folder_of_its_own(folder, tmp_path):
    checkpoint, task = opened(folder)
    run, options = tmp_path / "run", Options(strategy="tiered", early=False, precisions=(8, 6, 4, 3))
    search(checkpoint, task, budget=Budget(None, 0.05, "relative"), output=run, options=options)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    same, other = select(run), select(run, max_rise="500%", mu=1e-9)
    assert pack(same, tmp_path / "same") == same.packed
    pack(other, tmp_path / "other")
    packed = load_checkpoint(tmp_path / "other")
    assert other.packed is None and packed.file_bytes == other.selected.bytes != same.selected.bytes
    assert packed.tokenizer is not None and artifact.read(tmp_path / "other").allocation_json
    measured = evaluate(packed.model, task, "search")
    assert measured.value == other.search_selected.value
    with pytest.raises(StudyError, match="of the search itself"):
        pack(other, run / "artifact")
    with pytest.raises(StudyError, match="not the checkpoint of the study"):
        pack(other, tmp_path / "third", random_spikegpt(vocabulary=270, width=32, layers=2))
    assert not (tmp_path / "third").exists()
    assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}


def opened_artifact(path, folder):
    packed = load_checkpoint(path)
    packed.model.to("cpu")
    task = make_task("text", tokenizer=packed.tokenizer, config=packed.config, file=folder / "own.txt", windows=12)
    return packed, task


def test_a_network_whose_recurrent_form_differs_stops_the_study(folder, tmp_path, monkeypatch):
    checkpoint, task = opened(folder)
    initial = type(checkpoint.model).initial_state

    def shifted(model, batch):
        return [type(layer)(*(part + 1.0 for part in layer[:1]), *layer[1:]) for layer in initial(model, batch)]

    monkeypatch.setattr(type(checkpoint.model), "initial_state", shifted)
    with pytest.raises(CheckpointError, match="recurrent form"):
        search(checkpoint, task, budget=Budget(None, 0.05, "relative"), output=tmp_path)
    assert not (tmp_path / "selection.json").exists()


def test_a_weight_that_is_not_a_number_stops_the_study(folder, tmp_path):
    checkpoint, task = opened(folder)
    with torch.no_grad():
        checkpoint.model.blocks[1].ffn.key.weight[0, 0] = float("nan")
    with pytest.raises(FormatError, match=r"blocks\.1\.ffn\.key\.weight"):
        search(checkpoint, task, budget=Budget(None, 0.05, "relative"), output=tmp_path)
