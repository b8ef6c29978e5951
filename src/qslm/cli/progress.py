"""Progress on stderr: a bar with an estimate on a terminal, a plain line now and then elsewhere.

Work that ends within two seconds shows nothing.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Self, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Item = TypeVar("Item")

QUIET_SECONDS = 2.0
LINE_SECONDS = 20.0


class Listener:
    """Shows the progress of long work; a context manager, so that the terminal is left as it was.

    Tracks may be nested: every one that lasts longer than two seconds gets a bar of its own.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._bars: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def track(self, items: Iterable[Item], total: int, description: str) -> Iterator[Item]:
        """Yield `items` one by one, `total` of them, and show how far they are."""
        if self._stream.isatty():
            yield from self._with_bar(items, total, description)
        else:
            yield from self._with_lines(items, total, description)

    def message(self, text: str) -> None:
        """Show one line, above the bars if there are any."""
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def _with_bar(self, items: Iterable[Item], total: int, description: str) -> Iterator[Item]:
        started, bar = time.monotonic(), None
        try:
            for done, item in enumerate(items):
                if bar is None and time.monotonic() - started > QUIET_SECONDS:
                    bar = self._new_bar(total, description)
                if bar is not None and self._bars is not None:
                    self._bars.update(bar, completed=done)
                yield item
        finally:
            if bar is not None and self._bars is not None:
                self._bars.remove_task(bar)

    def _new_bar(self, total: int, description: str) -> "TaskID":
        from rich.markup import escape

        if self._bars is None:
            self._bars = _bars(self._stream)
            self._bars.start()
        return self._bars.add_task(escape(description), total=total)

    def _with_lines(self, items: Iterable[Item], total: int, description: str) -> Iterator[Item]:
        started = last = time.monotonic()
        for done, item in enumerate(items):
            now = time.monotonic()
            if done and now - last > LINE_SECONDS:
                last = now
                left = (now - started) / done * (total - done)
                self.message(f"{description}: {done} of {total}, about {spell_seconds(left)} left")
            yield item


def _bars(stream: TextIO) -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(file=stream), transient=True)


def spell_seconds(seconds: float) -> str:
    """`45 s`, `3 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
