"""The folder that a training writes to: whose it is, who holds it, and what a full disk or a kill leaves in it."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qslm.errors import TrainingError
from qslm.locking import lock_folder
from qslm.training import ClassifierSettings, LanguageModelSettings, train_classifier, train_lm

FILES = ["config.json", "loss.png", "model.safetensors", "tokenizer.json", "training.json", "training.pt"]
LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from qslm.cli.main import app
app()
"""


@pytest.fixture
def settings(tiny_data, tmp_path):
    return LanguageModelSettings(tmp_path / "run", tiny_data, 16, 1, 280, 16, 4, 4 * 16)


def train_with_files_of(limit, settings):
    """Run the training's own command where no file may grow beyond `limit` bytes."""
    sizes = ("--width", "16", "--layers", "1", "--vocabulary", "280", "--context", "16", "--batch", "4")
    words = ("train", "lm", "-o", settings.output, "--data", settings.data, *sizes, "--tokens", settings.tokens)
    command = [sys.executable, "-c", LIMITED, limit, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=120)


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("limit", [1_000, 60_000])
def test_a_full_disk_leaves_nothing_half_written(limit, settings):
    done = train_with_files_of(limit, settings)
    assert done.returncode == 2, done.stderr
    assert f"cannot be saved in {settings.output}: File too large." in done.stderr and "Free some space" in done.stderr
    assert list(settings.output.iterdir()) == []


@pytest.mark.parametrize("limit", [1_000, 20_000])
def test_a_full_disk_leaves_the_checkpoint_before(limit, settings):
    train_lm(settings)
    before = contents(settings.output)
    assert sorted(before) == FILES
    done = train_with_files_of(limit, settings)
    assert done.returncode == 2 and "File too large" in done.stderr
    assert contents(settings.output) == before


def test_a_training_killed_at_random_moments_ends_the_same(tiny_data, tmp_path):
    script = Path(__file__).with_name("killed.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, tiny_data, tmp_path], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    deaths = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(deaths) == 8
    assert {death["died_of"] for death in deaths} == {signal.SIGKILL}
    assert all(death["same"] for death in deaths)
    assert any("training.pt" in death["kept"] for death in deaths)
    assert any("training.pt" not in death["kept"] for death in deaths)


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors", "config.json", "tokenizer.json", "other.bin"])
def test_a_folder_of_somebody_else_is_refused_and_kept(name, settings, tiny_data):
    settings.output.mkdir()
    (settings.output / name).write_text("somebody's")
    for train, told in ((train_lm, settings), (train_classifier, ClassifierSettings(settings.output, tiny_data))):
        with pytest.raises(TrainingError, match=rf"(a checkpoint|another model), {name}\."):
            train(told)
    assert contents(settings.output) == {name: b"somebody's"}


def test_a_folder_with_other_files_is_taken(settings):
    settings.output.mkdir()
    (settings.output / "notes.txt").write_text("mine")
    train_lm(settings)
    assert sorted(contents(settings.output)) == sorted([*FILES, "notes.txt"])


def test_a_tokenizer_that_lies_there_is_not_read(settings):
    train_lm(settings)
    before = contents(settings.output)
    (settings.output / "tokenizer.json").write_text("{")
    train_lm(settings)
    assert contents(settings.output) == before


def test_another_training_is_refused_before_anything_changes(settings):
    train_lm(settings)
    before = contents(settings.output)
    with pytest.raises(TrainingError, match="vocabulary was 280, is 300"):
        train_lm(replace(settings, vocabulary=300))
    with pytest.raises(TrainingError, match="epochs was None, is 4"):
        train_classifier(ClassifierSettings(settings.output, settings.data))
    assert contents(settings.output) == before


def test_two_trainings_at_once_are_refused(settings):
    lock = lock_folder(settings.output, TrainingError("Taken."))
    with pytest.raises(TrainingError, match="Another training is running"):
        train_lm(settings)
    assert list(settings.output.iterdir()) == []
    os.close(lock)
    train_lm(settings)


def test_a_file_in_place_of_the_folder_is_refused(settings):
    settings.output.write_text("a file")
    with pytest.raises(TrainingError, match="cannot be used: File exists"):
        train_lm(settings)


def test_missing_data_leaves_no_folder(settings, tmp_path):
    with pytest.raises(Exception, match="has no"):
        train_lm(replace(settings, data=tmp_path))
    assert not settings.output.exists()
