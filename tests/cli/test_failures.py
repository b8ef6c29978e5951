import errno

import pytest
import torch

from qslm.cli.failures import explain
from qslm.errors import BudgetError


@pytest.mark.parametrize(
    ("error", "verb", "status", "words"),
    [
        (BudgetError("Too small.", "Take 3 MB."), "search", 2, ["qslm: error: Too small.\n  Take 3 MB."]),
        (KeyboardInterrupt(), "search", 130, ["stopped", "the same command goes on"]),
        (KeyboardInterrupt(), "inspect", 130, ["stopped"]),
        (
            OSError(errno.ENOSPC, "No space left on device", "x/y"),
            "search",
            2,
            ["x/y: no space left on device.", "Free"],
        ),
        (PermissionError(errno.EACCES, "Permission denied", "z"), "demo", 2, ["z", "permission denied"]),
        (OSError(errno.EROFS, "Read-only file system"), "demo", 2, ["error: Read-only file system.", "can be written"]),
        (MemoryError(), "eval", 2, ["memory of this machine"]),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "train", 2, ["memory of this"]),
        (RuntimeError("CUDA out of memory. Tried to"), "train", 2, ["memory of this machine"]),
        (RuntimeError("Storage size calculation overflowed with sizes=[9]"), "train", 2, ["memory of this machine"]),
        (RuntimeError("odd"), "eval", 1, ["internal error: RuntimeError: odd"]),
        (ValueError("odd"), "eval", 1, ["internal error: ValueError: odd", "report"]),
    ],
)
def test_one_message_and_a_status(capsys, error, verb, status, words):
    assert explain(error, verb) == status
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.count("qslm:") == 1
    assert all(word in written.err for word in words)
    assert "Traceback" not in written.err


def test_an_allocation_that_fails_in_pytorch_is_a_lack_of_memory(capsys):
    for numbers in (2**60, 2**62):  # more than any machine addresses, and more than can be counted
        with pytest.raises(RuntimeError) as caught:
            torch.empty(numbers)
        assert explain(caught.value, "train") == 2
        assert "memory of this machine does not suffice" in capsys.readouterr().err


def test_control_characters_of_a_hostile_name_are_made_visible(capsys):
    explain(BudgetError("a\x1b[2Jb\rc", ""), "eval")
    assert capsys.readouterr().err == "qslm: error: a\\x1b[2Jb\\rc\n"


def test_the_traceback_of_an_internal_error_can_be_had(capsys, monkeypatch):
    monkeypatch.setenv("QSLM_TRACEBACK", "1")
    try:
        raise ValueError("odd")
    except ValueError as error:
        explain(error, "eval")
    assert "Traceback" in capsys.readouterr().err
