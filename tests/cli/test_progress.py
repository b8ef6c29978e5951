import io

import pytest

from qslm.cli import progress
from qslm.cli.progress import Listener, spell_seconds


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_short_work_shows_nothing():
    stream = Terminal()
    with Listener(stream) as listener:
        assert list(listener.track(range(5), 5, "work")) == [0, 1, 2, 3, 4]
    assert stream.getvalue() == ""


def test_a_bar_appears_on_a_terminal(monkeypatch):
    monkeypatch.setattr(progress, "QUIET_SECONDS", -1.0)
    stream = Terminal()
    with Listener(stream) as listener:
        for outer in listener.track(range(3), 3, "outer [red]"):
            assert list(listener.track(iter("ab"), 2, "inner")) == ["a", "b"]
            listener.message(f"done {outer} [bold]")
    assert "outer [red]" in stream.getvalue()
    assert "done 2 [bold]" in stream.getvalue()


def test_lines_appear_elsewhere(monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", -1.0)
    stream = io.StringIO()
    with Listener(stream) as listener:
        assert list(listener.track(range(3), 3, "work")) == [0, 1, 2]
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("work: 1 of 3, about ")
    assert len(lines) == 2


def test_work_that_fails_leaves_the_terminal_clean(monkeypatch):
    monkeypatch.setattr(progress, "QUIET_SECONDS", -1.0)
    stream = Terminal()
    with pytest.raises(ValueError, match="broken"), Listener(stream) as listener:
        for _ in listener.track(range(3), 3, "work"):
            raise ValueError("broken")
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h")


@pytest.mark.parametrize(("seconds", "text"), [(4.4, "4 s"), (89, "89 s"), (100, "2 min"), (9000, "2.5 h")])
def test_seconds_are_spelled(seconds, text):
    assert spell_seconds(seconds) == text
