"""Energy that the machine itself measures, as an A/B/A experiment: idle, work, idle, with idle subtracted.

Counters are those of RAPL, as Linux shows them in /sys/class/powercap (packages, and DRAM beside them), and of NVML by
the optional package nvidia-ml-py. Where none can be read it is said which file or package was missing, and there is no
number. What else runs on the machine in the meantime is measured too: the interval shows it.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from qslm.errors import EnergyError

POWERCAP = Path("/sys/class/powercap")
LEAST_REPEATS = 3


class Counter(ABC):
    """A counter of energy; `name` says of what."""

    name: str

    @abstractmethod
    def joules(self) -> float:
        """What was used since the last reading, J; 0 at the first. Raises EnergyError when it cannot be read."""


class PowercapZone(Counter):
    """A zone of powercap: microjoules that start again at 0 after `max_energy_range_uj`.

    Two readings must be closer than one such round, which takes minutes at the least. Raises EnergyError when a file
    cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"{folder.name} ({_read(folder / 'name')})"
        self._range = _number(folder / "max_energy_range_uj")
        self._last = _number(folder / "energy_uj")

    def joules(self) -> float:
        """As `Counter.joules`; a counter that went back has gone round once."""
        now = _number(self.folder / "energy_uj")
        used = now - self._last
        self._last = now
        return (used if used >= 0 else used + self._range + 1) / 1e6


class NvmlDevice(Counter):
    """The millijoules of a GPU since its driver was loaded (Volta or newer)."""

    def __init__(self, nvml: Any, index: int) -> None:
        self._nvml, self._handle = nvml, nvml.nvmlDeviceGetHandleByIndex(index)
        self.name = f"GPU {index}"
        self._last = nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)

    def joules(self) -> float:
        """As `Counter.joules`."""
        now = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        used, self._last = now - self._last, now
        return used / 1e3


@dataclass(frozen=True, eq=False)
class Counters:
    """The counters that can be read, and what of others was missing, one sentence each."""

    found: tuple[Counter, ...]
    missing: tuple[str, ...]

    def joules(self) -> float:
        """What all together used since the last reading, J."""
        return sum(counter.joules() for counter in self.found)


def find_counters(powercap: Path = POWERCAP, nvml: str = "pynvml") -> Counters:
    """All counters of this machine. A zone within a package is a part of it, so only its DRAM is counted beside it."""
    found: list[Counter] = []
    missing: list[str] = []
    folders = sorted(powercap.glob("intel-rapl:*"))
    if not folders:
        missing.append(f"RAPL: there is no {powercap / 'intel-rapl:0'} here.")
    for folder in folders:
        try:
            name = _read(folder / "name")
            if name.startswith("package") or name == "dram":
                found.append(PowercapZone(folder))
        except EnergyError as error:
            missing.append(f"RAPL: {error.problem}")
    try:
        found += _gpus(nvml)
    except ImportError:
        missing.append("NVML: the package nvidia-ml-py is not installed.")
    except Exception as error:  # of pynvml, whose errors have a class only where it is installed
        missing.append(f"NVML: {error}.")
    return Counters(tuple(found), tuple(missing))


@dataclass(frozen=True)
class Power:
    """Energy of work with idle subtracted: joules a token of each repeat, their mean and its 95 % interval.

    idle_watts: before and after, mean of all repeats; counters: what was measured.
    """

    joules_per_token: float
    low: float
    high: float
    repeats: tuple[float, ...]
    idle_watts: float
    counters: tuple[str, ...]


def measure(
    work: Callable[[], int],
    counters: Counters,
    *,
    repeats: int = 5,
    seconds: float = 2.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Power:
    """Measure `work`, which returns its tokens, again and again for some seconds between two times of idling.

    (E_work - t_work (P_before + P_after) / 2) / tokens, and the t interval of its mean over the repeats. Raises
    EnergyError where there is no counter, fewer than 3 repeats, no time, or no token.
    """
    if not counters.found:
        raise EnergyError("No power was measured. " + " ".join(counters.missing), "Run where one can be read.")
    if repeats < LEAST_REPEATS or not seconds > 0:
        raise EnergyError(
            f"{repeats} repeats of {seconds} seconds show no interval.", f"Give {LEAST_REPEATS} or more, above 0 s."
        )
    found, idle = [], []

    def span(run: Callable[[], int]) -> tuple[float, float, int]:
        """Joules, seconds and tokens of a run."""
        counters.joules()
        start = clock()
        tokens = run()
        return counters.joules(), clock() - start, tokens

    def rest() -> int:
        sleep(seconds)
        return 0

    def busy() -> int:
        tokens, end = 0, clock() + seconds
        while not tokens or clock() < end:
            done = work()
            if done < 1:
                raise EnergyError("The work that is measured did no token.", "Give it some text.")
            tokens += done
        return tokens

    for _ in range(repeats):
        (before, first, _), (used, took, tokens), (after, last, _) = span(rest), span(busy), span(rest)
        watts = (before / first + after / last) / 2
        idle.append(watts)
        found.append((used - watts * took) / tokens)
    mean = float(np.mean(found))
    half = float(special.stdtrit(repeats - 1, 0.975) * np.std(found, ddof=1) / repeats**0.5)
    names = tuple(counter.name for counter in counters.found)
    return Power(mean, mean - half, mean + half, tuple(found), float(np.mean(idle)), names)


def _gpus(package: str) -> list[Counter]:
    from importlib import import_module

    nvml = import_module(package)
    nvml.nvmlInit()
    return [NvmlDevice(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EnergyError(f"{path} cannot be read: {reason}.", "Since Linux 5.10 root alone may read it.") from error


def _number(path: Path) -> int:
    text = _read(path)
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise EnergyError(f"{path} has {text[:40]!r}, which is no number.", "Report it with the kernel's version.")
    return int(text)
