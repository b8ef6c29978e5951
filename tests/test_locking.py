import os
from pathlib import Path

import pytest

from qslm.errors import TrainingError
from qslm.locking import lock_folder

OPEN_FILES = Path("/proc/self/fd")
REFUSAL = TrainingError("Taken.", "Wait.")


def test_a_folder_is_held_once_and_given_back(tmp_path):
    folder = tmp_path / "new" / "folder"
    lock = lock_folder(folder, REFUSAL)
    with pytest.raises(TrainingError, match="Taken"):
        lock_folder(folder, REFUSAL)
    os.close(lock)
    os.close(lock_folder(folder, REFUSAL))
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="the system does not list open files")
def test_a_refusal_leaves_no_open_file(tmp_path):
    def held() -> list[str]:
        return [link for file in OPEN_FILES.iterdir() if (link := os.path.realpath(file)) == str(tmp_path.resolve())]

    lock = lock_folder(tmp_path, REFUSAL)
    for _ in range(3):
        with pytest.raises(TrainingError):
            lock_folder(tmp_path, REFUSAL)
    assert len(held()) == 1
    os.close(lock)
    assert not held()


def test_a_file_in_its_place_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        lock_folder(tmp_path / "file", REFUSAL)
