"""What tests of several folders share: real data where it is at hand, a small tokenizer, a listener.

It also lets the tests import the small networks that several of them share, as `networks.<file>`.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from qslm.data.tokenizer import train_tokenizer

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data; without it a test is skipped and says so, but under CI it fails."""
    named = os.environ.get("QSLM_DATA")
    if named and Path(named).is_dir():
        return Path(named)
    reason = f"needs real data, but QSLM_DATA={named!r} names no folder"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def small_tokenizer() -> Tokenizer:
    """A byte-level tokenizer of 300 tokens."""
    return train_tokenizer(["the film is a good film . the plot is bad , the end is worse .\n"] * 3, 300)


class Listener:
    """A Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def track(self, items: Iterable[object], total: int, description: str) -> Iterator[object]:
        yield from items

    def message(self, text: str) -> None:
        self.messages.append(text)


@pytest.fixture
def listener() -> Listener:
    return Listener()
