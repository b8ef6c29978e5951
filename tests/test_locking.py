import os

import pytest

from qslm.errors import TrainingError
from qslm.locking import lock_folder

REFUSAL = TrainingError("Taken.", "Wait.")


def test_a_folder_is_held_once_and_given_back(tmp_path):
    folder = tmp_path / "new" / "folder"
    lock = lock_folder(folder, REFUSAL)
    with pytest.raises(TrainingError, match="Taken"):
        lock_folder(folder, REFUSAL)
    os.close(lock)
    os.close(lock_folder(folder, REFUSAL))
    assert list(folder.iterdir()) == []


def test_a_refusal_leaves_no_open_file(tmp_path):
    lock = lock_folder(tmp_path, REFUSAL)
    for _ in range(3):
        with pytest.raises(TrainingError):
            lock_folder(tmp_path, REFUSAL)
    following = os.open(tmp_path, os.O_RDONLY)
    os.close(following)
    os.close(lock)
    assert following == lock + 1


def test_a_file_in_its_place_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        lock_folder(tmp_path / "file", REFUSAL)
