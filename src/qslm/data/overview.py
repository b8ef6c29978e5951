"""Which published data is found, where, and how much of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qslm.data.source import Source
from qslm.data.sst2 import load_sst2
from qslm.data.wikitext2 import load_wikitext2, word_tokens
from qslm.errors import DataError
from qslm.progress import SILENT, Progress

SPLITS = ("calibrate", "search", "report")


@dataclass(frozen=True)
class Finding:
    """The data of one task: where it was found (None: nowhere), and its size, by split, in `unit`s."""

    task: str
    unit: str
    source: Source | None
    sizes: tuple[int, ...]  # in the order of SPLITS, empty where nothing was found


def describe_data(folder: Path | str | None = None, progress: Progress = SILENT) -> list[Finding]:
    """Find the data of the tasks `wikitext2` and `sst2`.

    Sources in this order: `folder` or QSLM_DATA, the Hugging Face Hub, and for language modelling a text from the
    package registry. Raises DataError when a folder is given that does not hold them.
    """

    def words() -> tuple[Source, tuple[int, ...]]:
        corpus = load_wikitext2(folder, progress)
        return corpus.source, tuple(word_tokens(getattr(corpus, split)) for split in SPLITS)

    def sentences() -> tuple[Source, tuple[int, ...]]:
        corpus = load_sst2(folder, progress)
        return corpus.source, tuple(len(getattr(corpus, split)) for split in SPLITS)

    def finding(task: str, unit: str, look: Callable[[], tuple[Source, tuple[int, ...]]]) -> Finding:
        try:
            return Finding(task, unit, *look())
        except DataError as error:
            if folder is not None:
                raise
            progress.message(f"{task}: {error}")
            return Finding(task, unit, None, ())

    return [finding("wikitext2", "words", words), finding("sst2", "sentences", sentences)]
