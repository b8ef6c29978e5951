"""Packing what was selected: into the run folder by the search, elsewhere for another budget."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qslm import artifact, folders
from qslm.allocation import Allocation
from qslm.errors import StudyError
from qslm.loading.checkpoint import load_checkpoint
from qslm.quantizers import Inputs, Learned, RoundedSites, fold, folds_of
from qslm.study import folder
from qslm.study.expecting import stored_inputs
from qslm.study.reconstructing import stored_learned
from qslm.study.selection import Selection
from qslm.study.subject import LoadedCheckpoint, Subject


def pack(
    selection: Selection, output: Path | str, checkpoint: LoadedCheckpoint | nn.Module | Path | str | None = None
) -> str:
    """Pack what `select` answered into a folder of its own; the sha256 of the model file.

    `checkpoint` is that of the study, or what names it: by default what the study opened. Raises StudyError when it
    is another one or `output` holds anything but a packed model, CheckpointError when it is no longer there.
    """
    packed = selection.run / folder.ARTIFACT
    if Path(output).resolve() == packed.resolve():
        raise StudyError(f"{output} is of the search itself, as selection.json says.", "Choose another folder.")
    place = folders.check(output, "packing", StudyError)
    _refuse_source(place, _path_of(checkpoint))
    study = folder.read_json(selection.run / folder.STUDY)["checkpoint"]
    _refuse_source(place, study.get("source"))
    subject = Subject.of(_opened(study, checkpoint) if isinstance(checkpoint, str | Path | None) else checkpoint)
    if subject.digest != study["digest"]:
        problem = f"{subject.name} is not the checkpoint of the study: {subject.digest}, not {study['digest']}."
        raise StudyError(problem, f"Give {study['name']} as the study has read it (--checkpoint).")
    tokenizer = packed / artifact.TOKENIZER  # of a search that was given one beside the checkpoint
    if tokenizer.is_file():
        subject = replace(subject, tokenizer_json=tokenizer.read_text(encoding="utf-8"))
    run, allocation = selection.run, selection.allocation
    return write_packed(place, subject, allocation, stored_inputs(run, allocation), stored_learned(run, allocation))


def _refuse_source(place: Path, source: str | None) -> None:
    """Refuse to pack a model over what it is packed from. Raises StudyError."""
    there = None if source is None or not Path(source).exists() else Path(source).resolve()
    if there is not None and place.resolve() == (there if there.is_dir() else there.parent):
        raise StudyError(f"{place} is the folder of the checkpoint that is packed.", "Name another folder.")


def _path_of(checkpoint: object) -> str | None:
    return str(checkpoint) if isinstance(checkpoint, str | Path) else getattr(checkpoint, "source", None)


def write_packed(
    output: Path, subject: Subject, allocation: Allocation, inputs: Inputs | None, learned: Learned | None
) -> str:
    """Pack a network, its weights as they are, with an allocation into a folder; the sha256 of the model file.

    `inputs` is what calibrated quantizers look at, `learned` what reconstruction has rounded.
    """
    state = {name: value.cpu() for name, value in subject.model.state_dict().items() if isinstance(value, Tensor)}
    packed = artifact.write(
        output,
        fold(RoundedSites(state, allocation, inputs, learned), folds_of(subject.model, allocation.anatomy)),
        allocation,
        config=subject.config,
        tokenizer_json=subject.tokenizer_json,
    )
    return packed.sha256


def _opened(study: dict[str, Any], source: Path | str | None) -> LoadedCheckpoint:
    """The checkpoint that study.json describes, its embedding as it was taken then."""
    source = source or study.get("source")
    if source is None:
        raise StudyError(
            f"The study does not say from what {study['name']} was opened.", "Give the checkpoint (--checkpoint)."
        )
    return load_checkpoint(source, binary_embedding=study["config"].get("binary_embedding", "auto"))
