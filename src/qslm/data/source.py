"""Where data comes from, in a fixed order, and what each source says about itself."""

import importlib.util
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qslm.errors import DataError
from qslm.progress import SILENT, Progress

ENVIRONMENT = "QSLM_DATA"
HUB_TIMEOUT = 3.0  # seconds until the Hub counts as out of reach

Rows = Mapping[str, Sequence[Any]]  # split -> rows


@dataclass(frozen=True)
class Source:
    """What was read: a data set's name, the place it came from, and whether it is the data that was asked for."""

    name: str
    origin: str
    in_domain: bool = True
    note: str = ""

    def __str__(self) -> str:
        return f"{self.name} from {self.origin}" + (f" ({self.note})" if self.note else "")


def data_files(folder: Path | str | None, names: Sequence[str], progress: Progress = SILENT) -> list[Path] | None:
    """Paths of the files `names` in the data folder, or None where no folder has all of them.

    `folder` is what the user names; without it the environment variable QSLM_DATA is asked. Raises DataError when
    a folder that the user names lacks a file; a QSLM_DATA that lacks one is told, and other sources are tried.
    """
    given = folder or os.environ.get(ENVIRONMENT)
    if not given:
        return None
    named = Path(given)
    missing = [name for name in names if not (named / name).is_file()]
    if missing and folder is not None:
        raise DataError(f"The data folder {named} has no {missing[0]}.", "Put it there, or name another folder.")
    if missing:
        progress.message(f"{ENVIRONMENT}={named} has no {missing[0]}: looking elsewhere.")
        return None
    return [named / name for name in names]


def read_text(path: Path) -> str:
    """The UTF-8 text of a file, its line ends as they are. Raises DataError with file and line."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        problem = f"{path} cannot be read: {error.strerror}."
        raise DataError(problem, "Give the path of a readable text file.") from error
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: byte {error.start} (0x{raw[error.start]:02x}) is not UTF-8.",
            "Convert the file to UTF-8, for example with `iconv -f latin1 -t utf-8`.",
        ) from error


def from_hub(load: Callable[[Any], Rows], name: str, progress: Progress = SILENT) -> Rows | None:
    """What `load(datasets)` reads from the Hugging Face Hub, or None, with a message, where that is not possible."""
    if importlib.util.find_spec("datasets") is None:
        progress.message(f"{name}: `datasets` is not installed, so the Hugging Face Hub is not asked.")
        return None
    if not _hub_is_reachable():
        progress.message(f"{name}: the Hugging Face Hub is out of reach.")
        return None
    try:
        import datasets

        return load(datasets)
    except Exception as error:  # whatever the Hub's client meets, the next source is tried
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        progress.message(f"{name}: the Hugging Face Hub did not give it ({reason}).")
        return None


def _hub_is_reachable() -> bool:
    """Ask once and briefly: the Hub's own client would retry for minutes without a network."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    request = urllib.request.Request(endpoint, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT):
            return True
    except urllib.error.HTTPError:
        return True  # it answers, whatever it says about its front page
    except (OSError, ValueError):
        return False
