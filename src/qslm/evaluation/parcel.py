"""A network and its task as bytes that processes can share: every tensor in one buffer, the rest pickled.

The buffer is read where it lies, so that any number of processes hold its numbers once.
"""

import io
import pickle
import warnings
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from qslm.errors import StudyError
from qslm.progress import SILENT

ALIGNMENT = 64  # bytes, as PyTorch aligns its own tensors: kernels take the same path over both
REMEDY = "Measure in one process, or define the classes of the network and the task at the top of a module."


class TensorPickler(pickle.Pickler):
    """Takes every tensor out of what it pickles, and writes the memory behind it to `stream`, each once.

    Tensors that share memory share it again where they are read. A Progress stays behind.
    """

    def __init__(self, file: BinaryIO, stream: BinaryIO) -> None:
        super().__init__(file, protocol=5)
        self._stream = stream
        self._numbers: dict[int, int] = {}
        self._places: dict[tuple[int, int], int] = {}
        self._kept: list[Any] = []  # an address stands for one tensor only as long as that lives

    def persistent_id(self, value: Any) -> Any:
        """What stands for a tensor in the pickle: its number, and where its numbers lie in the buffer."""
        if hasattr(type(value), "track") and hasattr(type(value), "message"):
            return ("progress",)
        if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided or value.is_conj():
            return None
        if value.device.type != "cpu":
            raise StudyError(
                f"A tensor of the network or the task is on {value.device}, and workers compute on the CPU.",
                "Move the network with model.cpu(), or measure in one process.",
            )
        number = self._numbers.setdefault(id(value), len(self._numbers))
        memory = value.untyped_storage()
        self._kept.append((value, memory))
        shape, stride = tuple(value.shape), value.stride()
        kind = ("parameter", value.requires_grad) if isinstance(value, nn.Parameter) else ("tensor", False)
        return (*kind, number, value.dtype, self._place(memory), memory.nbytes(), shape, stride, value.storage_offset())

    def _place(self, memory: torch.UntypedStorage) -> int:
        key = memory.data_ptr(), memory.nbytes()
        if key not in self._places:
            self._stream.write(bytes(-self._stream.tell() % ALIGNMENT))
            self._places[key] = self._stream.tell()
            self._stream.write(torch.empty(0, dtype=torch.uint8).set_(memory).numpy().data)
        return self._places[key]


def write_parcel(content: Any, stream: BinaryIO, pickler: type[TensorPickler] = TensorPickler) -> bytes:
    """Write the tensors in `content` to `stream` and return all else, pickled.

    Raises StudyError when a part cannot be pickled, or a tensor is not on the CPU.
    """
    pickled = io.BytesIO()
    try:
        pickler(pickled, stream).dump(content)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise StudyError(f"The network or its task cannot be sent to other processes: {error}.", REMEDY) from error
    stream.write(bytes(-stream.tell() % ALIGNMENT or ALIGNMENT))  # no buffer is empty
    stream.flush()
    return pickled.getvalue()


def read_parcel(pickled: bytes, buffer: Any) -> Any:
    """The inverse of `write_parcel`: its tensors are views into `buffer`, and are written to only if that may be."""
    return _Unpickler(io.BytesIO(pickled), buffer).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, buffer: Any) -> None:
        super().__init__(file)
        self._buffer = buffer
        self._tensors: dict[int, Tensor] = {}

    def persistent_load(self, found: Any) -> Any:
        if found[0] == "progress":
            return SILENT
        kind, requires_grad, number, *where = found
        if number not in self._tensors:
            tensor = self._view(*where)
            self._tensors[number] = nn.Parameter(tensor, requires_grad) if kind == "parameter" else tensor
        return self._tensors[number]

    def _view(
        self, dtype: torch.dtype, place: int, size: int, shape: tuple[int, ...], stride: tuple[int, ...], offset: int
    ) -> Tensor:
        if size == 0:
            return torch.empty_strided(shape, stride, dtype=dtype)
        with warnings.catch_warnings():  # the floats are read only, and are only read
            warnings.filterwarnings("ignore", message=".*not writable")
            memory = torch.frombuffer(self._buffer, dtype=dtype, count=size // dtype.itemsize, offset=place)
        return memory.as_strided(shape, stride, offset)
