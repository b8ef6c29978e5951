"""Where a program spends its time and its memory: seconds and peaks of named functions."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Self

STATUS = Path("/proc/self/status")
REST = "rest"
EVERY = 0.05  # seconds between two looks at the memory


class Stopwatch:
    """Counts, within a `with`, the seconds of every named function without those of named functions called by it.

    parts: (owner, attribute) of functions by name; several may share one. `peaks` are the largest resident bytes seen
    while a part ran, in all and of mapped files; where there is no /proc it stays empty.
    """

    def __init__(self, parts: Mapping[str, list[tuple[Any, str]]]) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self.peaks: dict[str, dict[str, int]] = {}
        self._parts, self._originals = parts, [(o, n, vars(o)[n]) for found in parts.values() for o, n in found]
        self._running, self._since = [REST], 0.0
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self._since = time.perf_counter()
        for part, found in self._parts.items():
            for owner, name in found:
                setattr(owner, name, self._counted(part, vars(owner)[name]))
        if STATUS.exists():
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._turn()
        for owner, name, original in self._originals:
            setattr(owner, name, original)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Seconds, calls and peak of every part, the longest first."""
        longest = sorted(self.seconds.items(), key=lambda part: -part[1])
        return {
            part: {"seconds": seconds, "calls": self.calls[part], "peak": self.peaks.get(part)}
            for part, seconds in longest
        }

    def _counted(self, part: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            self._running.append(part)
            self.calls[part] += 1
            try:
                return original(*args, **kwargs)
            finally:
                self._turn()
                self._running.pop()

        return counted

    def _turn(self) -> None:
        """Put the time since the last turn down to what has run."""
        now = time.perf_counter()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def _watch(self) -> None:
        while not self._over.wait(EVERY):
            seen = resident()
            if seen["all"] > self.peaks.get(part := self._running[-1], seen | {"all": 0})["all"]:
                self.peaks[part] = seen


def resident() -> dict[str, int]:
    """Bytes of this process in memory now: all, and those of mapped files. Linux only."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    return {name: 1024 * int(lines[key].split()[0]) for name, key in (("all", "VmRSS"), ("files", "RssFile"))}
