"""What verbs open before they work: the checkpoint, and the task for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qslm.cli.progress import Listener

if TYPE_CHECKING:
    from qslm.loading.checkpoint import Checkpoint
    from qslm.tasks import Task


def open_checkpoint(
    checkpoint: str,
    *,
    tokenizer: Path | None,
    progress: Listener,
    binary_embedding: str = "auto",
    data: Path | None = None,
) -> "Checkpoint":
    """Load a checkpoint; a tokenizer with more ids than it has words is refused before. Raises QslmError."""
    from qslm.loading.checkpoint import load_checkpoint

    if tokenizer is not None:
        _check_tokenizer(checkpoint, tokenizer)
    return load_checkpoint(
        checkpoint, tokenizer=tokenizer, binary_embedding=binary_embedding, data=data, progress=progress
    )


def open_task(
    checkpoint: str,
    task: str,
    *,
    tokenizer: Path | None,
    binary_embedding: str,
    data: Path | None,
    file: Path | None,
    context: int | None,
    windows: int | Mapping[str, int] | None,
    progress: Listener,
) -> "tuple[Checkpoint, Task]":
    """Load a checkpoint and the task to measure it on. Raises QslmError."""
    from qslm.tasks import make_task

    loaded = open_checkpoint(
        checkpoint, tokenizer=tokenizer, progress=progress, binary_embedding=binary_embedding, data=data
    )
    made = make_task(
        task,
        tokenizer=loaded.tokenizer,
        config=loaded.config,
        data=data,
        file=file,
        context=context,
        windows=windows,
        progress=progress,
    )
    return loaded, made


def _check_tokenizer(checkpoint: str, tokenizer: Path) -> None:
    from qslm.data.tokenizer import check_vocabulary, load_tokenizer
    from qslm.loading.outline import read_outline

    largest = max(load_tokenizer(tokenizer).get_vocab().values(), default=0)
    check_vocabulary(largest, read_outline(checkpoint).vocabulary_size)
