"""Packing what was selected."""

from pathlib import Path

from torch import Tensor

from qslm import artifact
from qslm.allocation import Allocation
from qslm.quantizers import RoundedSites
from qslm.study.subject import Subject


def write_packed(output: Path, subject: Subject, allocation: Allocation) -> str:
    """Pack a network, its weights as they are, with an allocation into a folder; the sha256 of the model file."""
    state = {name: value.cpu() for name, value in subject.model.state_dict().items() if isinstance(value, Tensor)}
    packed = artifact.write(
        output,
        RoundedSites(state, allocation),
        allocation,
        config=subject.config,
        tokenizer_json=subject.tokenizer_json,
    )
    return packed.sha256
