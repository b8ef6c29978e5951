"""Whether a verb runs a model by the native engine or in PyTorch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qslm.errors import ArtifactError

if TYPE_CHECKING:
    from qslm.runtime.engine import Engine

EngineChoice = Annotated[
    str,
    typer.Option(
        "--engine",
        help="native runs a packed model where it lies, torch unpacks it; auto: native where the engine can.",
    ),
]


def open_engine(checkpoint: str, choice: str, threads: int | None) -> "Engine | None":
    """The native engine for a packed model; None where PyTorch is to run it.

    Raises ArtifactError where the choice is none, or `native` cannot be had.
    """
    from qslm import folders, packed
    from qslm.runtime.engine import Engine

    if choice not in ("auto", "native", "torch"):
        raise ArtifactError(f"There is no engine {choice[:40]!r}.", "Use --engine auto, native or torch.")
    if choice == "torch":
        return None
    folder = packed.folder_of(Path(checkpoint))
    if not folders.is_artifact(folder):
        if choice == "native":
            raise ArtifactError(
                f"{checkpoint} is not a packed model, which the native engine runs.",
                "Pack one by qslm search, or use --engine torch.",
            )
        return None
    try:
        return Engine(folder, threads=threads)
    except ArtifactError:
        if choice == "native":
            raise
        return None
