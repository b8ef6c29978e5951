"""SST-2 (Socher et al. 2013, in the form of GLUE): film reviews, negative (0) or positive (1)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qslm.data.files import LabelledText, load_labelled_file
from qslm.data.source import Rows, Source, data_files, from_hub
from qslm.errors import DataError
from qslm.progress import SILENT, Progress

LABELS = ("negative", "positive")
CLASSES = len(LABELS)
SEARCH_SIZE = 1500  # phrases
SEARCH_WORDS = 8  # words of a search phrase, at least
REMOVED_WORDS = 4  # words of a training phrase that is removed with its search phrase, at least
SEED = 2

Words = tuple[str, ...]


@dataclass(frozen=True)
class LabelledCorpus:
    """Labelled sentences for classification: one set a split, the names of the classes, and what was counted."""

    calibrate: LabelledText
    search: LabelledText
    report: LabelledText
    labels: tuple[str, ...]
    counts: Mapping[str, int]
    source: Source

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.labels)


def load_sst2(folder: Path | str | None = None, progress: Progress = SILENT) -> LabelledCorpus:
    """SST-2 from a data folder (`sst2/{train,dev}.tsv`), or from the Hub.

    Calibrate is what remains of train after `split_search`, report is dev. The counts are told to `progress`.
    Raises DataError when no source has it.
    """
    found = _from_folder(folder, progress) or _from_hub(progress)
    if found is None:
        raise DataError(
            "SST-2 was not found: no data folder has it and the Hugging Face Hub did not give it.",
            "Name a folder with sst2/train.tsv and sst2/dev.tsv by --data or QSLM_DATA, or install "
            "`datasets`. To use your own sentences: --task labelled --file FILE.",
        )
    train, report, source = found
    calibrate, search, counts = split_search(train, SEARCH_SIZE, torch.Generator().manual_seed(SEED))
    counts = {**counts, "report": len(report)}
    listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    progress.message(f"Sentences: {source}; {listed}.")
    return LabelledCorpus(calibrate, search, report, LABELS, counts, source)


def split_search(
    train: LabelledText, size: int, generator: torch.Generator
) -> tuple[LabelledText, LabelledText, dict[str, int]]:
    """Take a search split of `size` phrases out of `train`, so that neither part contains the other's.

    SST-2's training phrases are all constituents of the parsed sentences, so most stand inside others. Drawn
    are phrases of eight words or more that stand inside no other phrase (an equal one counts once); removed
    from training is every phrase of four words or more that a drawn one contains. Returns (the remaining
    training phrases, the search phrases, counts). Raises DataError when there are fewer than `size` such phrases.
    """
    words = [tuple(sentence.split()) for sentence in train.sentences]
    outermost = outermost_phrases(words)
    if len(outermost) < size:
        raise DataError(
            f"SST-2 train has {len(outermost):,} phrases that stand inside no other; {size:,} are needed.",
            "Use the complete train.tsv of GLUE.",
        )
    drawn = torch.randperm(len(outermost), generator=generator)[:size].tolist()
    search = sorted(outermost[index] for index in drawn)
    spans = _spans((words[index] for index in search), REMOVED_WORDS)
    kept = [index for index, phrase in enumerate(words) if len(phrase) < REMOVED_WORDS or phrase not in spans]
    counts = {
        "train": len(train),
        "outermost": len(outermost),
        "search": size,
        "removed": len(train) - len(kept),
        "calibrate": len(kept),
    }
    return train.select(kept), train.select(search), counts


def outermost_phrases(phrases: Sequence[Words]) -> list[int]:
    """Indices, ascending, of the phrases of eight words or more that are no contiguous part of another one."""
    found: list[int] = []
    seen: dict[Words, list[Words]] = {}  # the first eight words of a place -> the phrase from that place on
    for index in sorted(range(len(phrases)), key=lambda index: (-len(phrases[index]), index)):
        phrase = phrases[index]
        if len(phrase) < SEARCH_WORDS:
            break
        if any(place[: len(phrase)] == phrase for place in seen.get(phrase[:SEARCH_WORDS], ())):
            continue
        found.append(index)
        for start in range(len(phrase) - SEARCH_WORDS + 1):
            seen.setdefault(phrase[start : start + SEARCH_WORDS], []).append(phrase[start:])
    return sorted(found)


def _spans(phrases: Iterable[Words], shortest: int) -> set[Words]:
    """All contiguous parts of the phrases that have `shortest` words or more."""
    return {
        phrase[start:end]
        for phrase in phrases
        for start in range(len(phrase) - shortest + 1)
        for end in range(start + shortest, len(phrase) + 1)
    }


def _from_folder(folder: Path | str | None, progress: Progress) -> tuple[LabelledText, LabelledText, Source] | None:
    paths = data_files(folder, ["sst2/train.tsv", "sst2/dev.tsv"], progress)
    if paths is None:
        return None
    train, dev = paths
    source = Source("SST-2", str(train.parent))
    return load_labelled_file(train, CLASSES), load_labelled_file(dev, CLASSES), source


def _from_hub(progress: Progress) -> tuple[LabelledText, LabelledText, Source] | None:
    rows = from_hub(_load_rows, "SST-2", progress)
    if rows is None:
        return None
    train, dev = rows["train"], rows["validation"]
    return _labelled(train), _labelled(dev), Source("SST-2", "the Hugging Face Hub (nyu-mll/glue)")


def _load_rows(datasets: Any) -> Rows:
    loaded = datasets.load_dataset("nyu-mll/glue", "sst2")
    splits = {name: loaded[name] for name in ("train", "validation")}
    return {name: list(zip(rows["sentence"], rows["label"], strict=True)) for name, rows in splits.items()}


def _labelled(rows: Sequence[tuple[str, int]]) -> LabelledText:
    return LabelledText(tuple(sentence.strip() for sentence, _ in rows), tuple(int(label) for _, label in rows))
