"""The tasks that have a name: wikitext2, sst2, and the user's own files as text and labelled."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from qslm.data.files import LabelledText, load_labelled_file, load_text_file, split_halves
from qslm.data.sst2 import load_sst2
from qslm.data.tokenizer import find_frame
from qslm.data.wikitext2 import load_wikitext2
from qslm.errors import TaskError
from qslm.models.config import TRANSFORMERS
from qslm.progress import SILENT, Progress
from qslm.tasks.classification import NO_FRAME, Classification
from qslm.tasks.language_modelling import CONTEXT, LanguageModelling
from qslm.tasks.task import Task

TEXT_TASKS = ("wikitext2", "text")
LABELLED_TASKS = ("sst2", "labelled")
FILE_TASKS = ("text", "labelled")
NAMES = TEXT_TASKS + LABELLED_TASKS
CALIBRATION = {"calibrate": 128}  # windows of the training text that are looked at, unless more are asked for
SEED = 4  # of the halves of a user's table


def make_task(
    name: str,
    *,
    tokenizer: Tokenizer | None,
    config: Mapping[str, Any],
    data: Path | str | None = None,
    file: Path | str | None = None,
    context: int | None = None,
    windows: int | Mapping[str, int] | None = None,
    progress: Progress = SILENT,
) -> Task:
    """The task `name` for a model with this tokenizer and configuration.

    wikitext2, sst2: published data (`data` is a folder that has them). text, labelled: the user's own `file`,
    whose split "all" is the whole of it; for a search, "search" is its first half and "report" its second (of
    a table, halves drawn with a fixed seed), and there is no "calibrate". context: tokens of a window or of a
    sentence, by default the model's. windows: measure only so many of the first windows, of every split or by the
    split's name; of labelled sentences so many, evenly spread over the split. Of "calibrate" the first 128 windows
    are looked at where nothing is said of it.

    A classifier of `transformers` reads its sentences within the frame of its tokenizer ([CLS] ... [SEP]).

    Raises TaskError when the model does not suit the task, DataError when the data is missing or unusable.
    """
    data, file = (None if path is None else Path(path) for path in (data, file))
    _check_request(name, config, file)
    if tokenizer is None:
        raise TaskError(f"The task {name} needs a tokenizer, and the checkpoint has none.", "Give --tokenizer FILE.")
    vocabulary_size = config.get("vocabulary_size")
    context = context if context is not None else int(config.get("context_length") or CONTEXT)
    evaluation_split = "all" if name in FILE_TASKS else "report"
    if name in TEXT_TASKS:
        texts, source = _texts(data, file, progress)
        return LanguageModelling(
            name,
            texts,
            tokenizer,
            context=context,
            windows={**CALIBRATION, **({} if windows is None else _by_split(windows))},
            vocabulary_size=vocabulary_size,
            counts_words=name == "wikitext2",
            evaluation_split=evaluation_split,
            source=source,
        )
    framed = config.get("architecture") == TRANSFORMERS
    if framed:
        _check_positions(context, config["context_length"])
    splits, classes, source = _labelled(config, data, file, progress)
    return Classification(
        name,
        splits,
        tokenizer,
        classes=classes,
        context=context,
        frame=find_frame(tokenizer) if framed else NO_FRAME,
        sentences=windows,
        vocabulary_size=vocabulary_size,
        evaluation_split=evaluation_split,
        source=source,
        progress=progress,
    )


def _by_split(windows: int | Mapping[str, int]) -> Mapping[str, int]:
    return windows if isinstance(windows, Mapping) else dict.fromkeys(("calibrate", "search", "report", "all"), windows)


def _check_request(name: str, config: Mapping[str, Any], file: Path | None) -> None:
    if name not in NAMES:
        raise TaskError(f"There is no task {name!r}.", f"The tasks are: {', '.join(NAMES)}.")
    if (file is not None) != (name in FILE_TASKS):
        problem = f"The task {name} {'reads no' if file is not None else 'needs a'} file."
        raise TaskError(problem, f"Give --file FILE with {' or '.join(FILE_TASKS)}, and with no other task.")
    if config:
        _check_model(name, config.get("classes"))


def _check_model(name: str, classes: int | None) -> None:
    if name in TEXT_TASKS and classes is not None:
        raise TaskError(
            f"The task {name} needs a language model, but the model is a classifier of {classes} classes.",
            f"Give a language model, or one of the tasks {', '.join(LABELLED_TASKS)}.",
        )
    if name in LABELLED_TASKS and classes is None:
        raise TaskError(
            f"The task {name} needs a classifier, but the model is a language model.",
            "Fine-tune it first: qslm train classifier --init CHECKPOINT.",
        )


def _check_positions(context: int, positions: int) -> None:
    if context > positions:
        raise TaskError(
            f"A context of {context:,} tokens is longer than the model's table of {positions:,} positions.",
            f"Give {positions} or less: longer sentences then lose their end.",
        )


def _check_order(told: Sequence[str], labels: Sequence[str]) -> None:
    """Refuse a model whose names of its classes say that they are in another order than the task's.

    A name counts where it is that of a class, or starts with three letters of it (POS), or is its number (LABEL_1).
    """
    for place, name in enumerate(told):
        word = name.lower().removeprefix("label_")
        meant = next((i for i, label in enumerate(labels) if word == str(i) or word.startswith(label[:3])), place)
        if meant != place:
            raise TaskError(
                f"The model's class {place} is {name[:40]!r}, that of the task is {labels[place]!r}.",
                f"Give a model of the classes {', '.join(labels)} in this order, or --task labelled with its own.",
            )


def _texts(data: Path | str | None, file: Path | None, progress: Progress) -> tuple[dict[str, str], str]:
    """(text of each split, where it was found)."""
    if file is not None:
        text = load_text_file(file)
        search, report = split_halves(text)
        return {"search": search, "report": report, "all": text}, str(file)
    corpus = load_wikitext2(data, progress)
    texts = {"calibrate": corpus.calibrate, "search": corpus.search, "report": corpus.report}
    return texts, str(corpus.source)


def _labelled(
    config: Mapping[str, Any], data: Path | str | None, file: Path | None, progress: Progress
) -> tuple[dict[str, LabelledText], int, str]:
    """(sentences of each split, number of classes, where they were found)."""
    classes = config.get("classes")
    if file is not None:
        table = load_labelled_file(file, classes)
        order = torch.randperm(len(table), generator=torch.Generator().manual_seed(SEED)).tolist()
        middle = len(order) // 2
        halves = table.select(sorted(order[:middle])), table.select(sorted(order[middle:]))
        splits = {"search": halves[0], "report": halves[1], "all": table}
        return splits, classes or max(table.labels) + 1, str(file)
    corpus = load_sst2(data, progress)
    if classes not in (None, corpus.classes):
        raise TaskError(f"SST-2 has {corpus.classes} classes, but the model has {classes}.", "Use --task labelled.")
    _check_order(config.get("labels", ()), corpus.labels)
    splits = {"calibrate": corpus.calibrate, "search": corpus.search, "report": corpus.report}
    return splits, corpus.classes, str(corpus.source)
