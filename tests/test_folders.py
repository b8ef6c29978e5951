"""Who may write where: every kind of folder against every writer, through the writers themselves as well."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
import torch

from qslm import artifact, folders
from qslm.allocation import Allocation
from qslm.anatomy import Anatomy, Site
from qslm.budget import Budget
from qslm.errors import ArtifactError, QslmError, StudyError, TrainingError
from qslm.quantizers import RoundedSites
from qslm.study import search, sensitivity
from qslm.training import ClassifierSettings, LanguageModelSettings, train_classifier, train_lm

ANATOMY = Anatomy((Site("a.weight", (4, 6), "input", "a"),))
KINDS, WRITERS = get_args(folders.Kind), get_args(folders.Writer)
ALLOWED = {
    ("training", "nothing"), ("training", "training"),
    ("study", "nothing"), ("study", "run"), ("study", "foreign"),
    ("packing", "nothing"), ("packing", "artifact"),
    ("exporting", "nothing"), ("exporting", "export"),
}  # fmt: skip
TOLD = {
    "checkpoint": "is the folder of a checkpoint, model.pth.",
    "artifact": "is the folder of a packed model.",
    "run": "is the run folder of a study.",
    "export": "is the folder of an exported model.",
    "training": "is the folder of a training, which keeps its training.pt there.",
    "foreign": "holds files of another model, config.json, tokenizer.json.",
}


def packed(folder):
    allocation = Allocation.float32(ANATOMY)
    artifact.write(folder, RoundedSites({"a.weight": torch.ones(4, 6)}, allocation), allocation, config={})


def filled(folder: Path, kind: str) -> Path:
    """A folder of a kind, every file of which says so."""
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    names = {
        "checkpoint": ["model.pth", "config.json", "tokenizer.json"],
        "run": ["study.json", "ledger.sqlite"],
        "training": ["training.pt", "model.safetensors", "config.json", "tokenizer.json", "training.json"],
        "foreign": ["config.json", "tokenizer.json"],
    }
    for name in names.get(kind, []):
        (folder / name).write_text("{}")
    if kind == "artifact":
        packed(folder)
    if kind == "export":
        (folder / "model.h").write_bytes(folders.EXPORTED)
        (folder / "model.bin").write_bytes(b"")
    return folder


def files(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_known(tmp_path, kind):
    assert folders.contents(filled(tmp_path / "folder", kind)).kind == kind


def test_what_is_no_folder_holds_nothing(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "none", tmp_path / "file", tmp_path / "file" / "below"):
        assert folders.contents(place) == folders.Contents("nothing")


@pytest.mark.parametrize("name", ["study.json", "ledger.sqlite"])
def test_a_study_is_known_by_either_file_and_before_a_model(tmp_path, name):
    packed(tmp_path)
    for other in ("training.pt", "model.pth", name):
        (tmp_path / other).write_text("{}")
    assert folders.contents(tmp_path) == folders.Contents("run", (name,))


@pytest.mark.parametrize("removed", ["model.safetensors", "config.json"])
def test_half_an_artifact_is_one(tmp_path, removed):
    packed(tmp_path)
    (tmp_path / removed).unlink()
    assert folders.contents(tmp_path).kind == "artifact"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\x02" + bytes(7) + b"[]", b"\xff" * 64, (2).to_bytes(8, "little") + b"{}"]
)
def test_other_weights_are_a_checkpoint(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert folders.contents(tmp_path) == folders.Contents("checkpoint", ("model.safetensors",))


@pytest.mark.parametrize(("writer", "kind"), list(product(WRITERS, KINDS)))
def test_each_pair_of_the_table(tmp_path, writer, kind):
    folder = filled(tmp_path / "folder", kind)
    before = files(folder)
    if (writer, kind) in ALLOWED:
        assert folders.check(str(folder), writer) == folder
        folders.check_ahead(folder, writer)
    else:
        for error, ask in ((StudyError, folders.check), (QslmError, folders.check_ahead)):
            with pytest.raises(error) as caught:
                ask(folder, writer, *([error] if ask is folders.check else []))
            assert type(caught.value) is error
            assert caught.value.problem == f"{folder} {TOLD[kind]}"
            assert caught.value.remedy.startswith("Name another folder") and caught.value.remedy.endswith(".")
    assert files(folder) == before


def test_the_table_names_every_writer_and_kinds_alone():
    assert set(folders.MAY_WRITE) == set(WRITERS)
    assert {(writer, kind) for writer, kinds in folders.MAY_WRITE.items() for kind in kinds} == ALLOWED


@pytest.mark.parametrize("kind", ["checkpoint", "run", "training", "foreign"])
def test_a_study_that_could_not_pack_in_the_end_is_refused_at_the_start(tmp_path, kind):
    filled(tmp_path / "artifact", kind)
    with pytest.raises(StudyError, match=f"{tmp_path}/artifact {TOLD[kind]}"):
        folders.check(tmp_path, "study", StudyError)


def test_a_folder_without_a_name_or_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    with pytest.raises(TrainingError, match="The name of the output folder is empty"):
        folders.check("", "training", TrainingError)

    def denied(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(ArtifactError, match="cannot be read: Permission denied") as caught:
        folders.check(tmp_path, "packing", ArtifactError)
    assert caught.value.remedy


# ---- the writers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted({kind for kind in KINDS if ("training", kind) not in ALLOWED}))
def test_trainings_ask_the_table(tmp_path, kind):
    folder = filled(tmp_path / "folder", kind)
    before = files(folder)
    for train, settings in ((train_lm, LanguageModelSettings), (train_classifier, ClassifierSettings)):
        with pytest.raises(TrainingError, match=TOLD[kind]):
            train(settings(folder, tmp_path))
    assert files(folder) == before


@pytest.mark.parametrize("kind", sorted({kind for kind in KINDS if ("study", kind) not in ALLOWED}))
def test_studies_ask_the_table(tmp_path, kind):
    folder = filled(tmp_path / "folder", kind)
    before = files(folder)
    with pytest.raises(StudyError, match=TOLD[kind]):
        search(torch.nn.Linear(2, 2), None, budget=Budget(1_000_000, None, "points"), output=folder)
    with pytest.raises(StudyError, match=TOLD[kind]):
        sensitivity(torch.nn.Linear(2, 2), None, output=folder)
    assert files(folder) == before


@pytest.mark.parametrize("kind", sorted({kind for kind in KINDS if ("packing", kind) not in ALLOWED}))
def test_packing_asks_the_table(tmp_path, kind):
    folder = filled(tmp_path / "folder", kind)
    before = files(folder)
    with pytest.raises(ArtifactError, match=TOLD[kind]):
        packed(folder)
    assert files(folder) == before


@pytest.mark.parametrize(
    ("words", "writer"),
    [
        (["train", "lm"], "training"),
        (["train", "classifier"], "training"),
        (["search", "spikegpt-mini", "--task", "wikitext2", "--max-rise", "1"], "study"),
        (["sensitivity", "spikegpt-mini", "--task", "wikitext2"], "study"),
        (["demo"], "study"),
        (["spike", "spikegpt-mini"], "packing"),
        (["select", "none", "--max-rise", "1"], "packing"),
    ],
)
def test_every_verb_asks_the_table_before_it_loads_anything(tmp_path, words, writer):
    """In a process of its own, which ends with the names of what was loaded: never PyTorch."""
    code = (
        "import json, sys\nfrom typer.testing import CliRunner\nfrom qslm.cli.main import app\n"
        "done = [CliRunner().invoke(app, [*json.loads(sys.argv[1]), '-o', place]) for place in sys.argv[2:]]\n"
        "print(json.dumps([[one.exit_code for one in done], [one.stderr for one in done], 'torch' in sys.modules]))"
    )
    kinds = [kind for kind in KINDS if (writer, kind) not in ALLOWED]
    places = [str(filled(tmp_path / kind, kind)) for kind in kinds]
    command = [sys.executable, "-c", code, json.dumps(words), *places]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    status, told, heavy = json.loads(done.stdout)
    assert status == [2] * len(kinds) and kinds
    assert all(TOLD[kind] in " ".join(text.split()) for kind, text in zip(kinds, told, strict=True))
    assert not heavy


def test_the_room_loads_without_pytorch():
    code = "import qslm.folders, qslm.cli.main, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
