"""Packed models for tests: a network rounded uniformly, and written."""

from pathlib import Path

from torch import nn

from qslm import artifact
from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.formats import FLOAT32, Format
from qslm.quantizers import RoundedSites


def pack(model: nn.Module, folder: Path, format: str = "int4-g64", tokenizer_json: str | None = None) -> Path:
    """Write `model` with its matrices in `format` and its vectors in float32 into `folder`."""
    allocation = Allocation.uniform(find_anatomy(model), Format.parse(format), vectors=FLOAT32)
    sites = RoundedSites(model.state_dict(), allocation)
    artifact.write(folder, sites, allocation, config=model.config.to_dict(), tokenizer_json=tokenizer_json)
    return folder
