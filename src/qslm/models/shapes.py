"""Names and shapes of the tensors in a checkpoint file. Loads without PyTorch."""

import pickletools
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open

from qslm.errors import CheckpointError
from qslm.models.config import Shapes

LARGEST_PICKLE = 1 << 26  # bytes that describe tensors, beside their numbers
WRAPPERS = ("state_dict", "model")  # keys under which trainings keep the tensors

T = TypeVar("T")


def read_shapes(path: Path) -> Shapes | None:
    """The shape of every tensor by its name; None where only PyTorch can tell. Raises CheckpointError."""
    with reading(path):
        if path.suffix != ".safetensors":
            found = _described(path)
            return None if found is None else unwrapped(path, found)
        with safe_open(path, framework="numpy") as file:
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


def inner(state: Any) -> Any:
    """What a checkpoint keeps under a key of WRAPPERS, or itself."""
    for key in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    return state


# ---- a .pth file --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Name:
    """A class or a function, by its module and its name; it is never looked up."""

    text: str


class _Unknown(Exception):  # noqa: N818 - it is no error: PyTorch reads what is not known here
    """Something beside tensors, dicts and numbers."""


def _described(path: Path) -> dict[str, tuple[int, ...]] | None:
    """The shapes in an archive of `torch.save`; None where it is none, or holds anything but tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            (entry,) = (one for one in archive.infolist() if one.filename.split("/")[1:] == ["data.pkl"])
            if entry.file_size > LARGEST_PICKLE:
                return None
            state = inner(_Reader().read(archive.read(entry)))
    except Exception:  # whatever is wrong with the archive, PyTorch says it
        return None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        return None
    whole = all(isinstance(value, _Tensor) for value in state.values())
    return {name: value.shape for name, value in state.items()} if whole else None


class _Reader:
    """Follows the instructions of a pickle as far as they describe tensors, and carries none of them out.

    No class is looked up and nothing is called: a tensor stays its shape, every other name a text.
    """

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def read(self, pickle: bytes) -> Any:
        """What the pickle describes. Raises _Unknown, and errors of a damaged pickle."""
        for instruction, argument, _ in pickletools.genops(pickle):
            if instruction.name == "STOP":
                return self._stack.pop()
            self._follow(instruction.name, argument)
        raise _Unknown

    def _follow(self, name: str, argument: Any) -> None:
        if name in ("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"):
            self._stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        elif name == "GLOBAL":
            self._stack.append(_Name(argument))
        elif name in _STEPS:
            _STEPS[name](self)
        elif name not in ("PROTO", "FRAME"):
            raise _Unknown

    def _mark(self) -> None:
        self._marks.append(len(self._stack))

    def _above_mark(self) -> list[Any]:
        start = self._marks.pop()
        found = self._stack[start:]
        del self._stack[start:]
        return found

    def _tuple(self, count: int) -> None:
        start = len(self._stack) - count
        self._stack[start:] = [tuple(self._stack[start:])]

    def _set_items(self, items: list[Any]) -> None:
        self._stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        match function:
            case _Name("collections OrderedDict") if not arguments:
                self._stack.append({})
            case _Name("torch._utils _rebuild_tensor_v2"):
                self._stack.append(_Tensor(tuple(map(int, arguments[2]))))
            case _Name("torch._utils _rebuild_parameter"):
                self._stack.append(arguments[0])
            case _:
                raise _Unknown


_STEPS: dict[str, Callable[[_Reader], None]] = {
    "MARK": _Reader._mark,
    "NONE": lambda reader: reader._stack.append(None),
    "NEWTRUE": lambda reader: reader._stack.append(True),
    "NEWFALSE": lambda reader: reader._stack.append(False),
    "EMPTY_DICT": lambda reader: reader._stack.append({}),
    "EMPTY_TUPLE": lambda reader: reader._stack.append(()),
    "TUPLE": lambda reader: reader._stack.append(tuple(reader._above_mark())),
    "TUPLE1": lambda reader: reader._tuple(1),
    "TUPLE2": lambda reader: reader._tuple(2),
    "TUPLE3": lambda reader: reader._tuple(3),
    "BINPERSID": lambda reader: reader._stack.__setitem__(-1, None),  # where the numbers lie
    "SETITEMS": lambda reader: reader._set_items(reader._above_mark()),
    "SETITEM": lambda reader: reader._set_items([reader._stack.pop(-2), reader._stack.pop()]),
    "BUILD": lambda reader: reader._stack.__delitem__(-1),  # attributes of a dict
    "REDUCE": _Reader._reduce,
}
