"""Names and shapes of the tensors in a checkpoint file. Loads without PyTorch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError, safe_open

from qslm.errors import CheckpointError
from qslm.models.config import Shapes

T = TypeVar("T")


def read_shapes(path: Path) -> Shapes:
    """The shape of every tensor in a safetensors file by its name. Raises CheckpointError."""
    with reading(path), safe_open(path, framework="numpy") as file:
        return unwrapped(path, {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what a missing, empty or damaged weight file causes into one CheckpointError that names it."""
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint file at {path}.", "Give a .pth or .safetensors file.")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty: it has 0 bytes.", "Fetch the file again.")
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}.", "Fetch the file again; it may be truncated."
        ) from error


def unwrapped(path: Path, tensors: Mapping[str, T]) -> dict[str, T]:
    """The same without the `module.` that parallel training puts before every name. Raises CheckpointError."""
    named = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if len(named) < len(tensors):
        twice = sorted(tensors.keys() & {f"module.{name}" for name in tensors})
        raise CheckpointError(f"{path} holds a tensor twice, as {twice[0]} and without `module.`.", "Remove one.")
    return named
