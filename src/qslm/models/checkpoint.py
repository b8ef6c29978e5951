"""Checkpoint files in: `.pth` by restricted unpickling, `.safetensors`; sizes are inferred from the tensors."""

import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.overrides import TorchFunctionMode

from qslm.errors import CheckpointError
from qslm.models.config import Shapes, SpikeGPTConfig, infer_config, tensor_shapes
from qslm.models.shapes import inner, reading, unwrapped
from qslm.models.spikegpt import SpikeGPT

VALUES_CHECKED_AT_ONCE = 1 << 22


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint file by name, mapped from disk where the file allows it.

    Raises CheckpointError when the file is missing, damaged, of another kind, or holds anything but tensors.
    """
    with reading(path):
        state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    for name, tensor in state.items():
        if not isinstance(name, str):
            raise CheckpointError(
                f"{path} holds something under {str(name)[:80]}, which is no name of a tensor.",
                "Save the state dict alone: torch.save(model.state_dict(), path).",
            )
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path} holds {type(tensor).__name__} under {name!r} where a tensor should be.",
                "Save the state dict alone: torch.save(model.state_dict(), path).",
            )
        if not _is_stored(tensor):
            raise CheckpointError(
                f"{path}: {name} of shape {tuple(tensor.shape)} is not stored in full, or sparse.", "Fetch it again."
            )
    return unwrapped(path, state)


def load_spikegpt(state: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, *, origin: str) -> SpikeGPT:
    """Make a SpikeGPT in evaluation mode from tensors with the published key names, float32.

    Sizes come from the tensors; `config` adds what they do not tell (context length, binary embedding). A classifier
    drops the language-model head. The tensors are taken over without a copy where they are float32 already.
    Raises CheckpointError with the keys and shapes when they are not those of a SpikeGPT, and on NaN or infinity.
    """
    inferred = infer_config(shapes_of(state), config or {}, origin)
    if inferred.classes is not None:
        state = {name: tensor for name, tensor in state.items() if name != "head.weight"}
    _check_shapes(state, inferred, origin)
    model = make_skeleton(inferred)
    weights = {name: tensor.to(torch.float32).contiguous() for name, tensor in state.items()}
    for name, tensor in weights.items():
        check_finite(tensor, f"{origin}: {name}")
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(False).eval()


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """The shape of every tensor by its name."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


class _NoInitialization(TorchFunctionMode):
    """Leave out what `torch.nn.init` does: on the meta device it changes nothing, but loads PyTorch's compiler."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def make_skeleton(config: SpikeGPTConfig) -> SpikeGPT:
    """Return a SpikeGPT of these sizes without weights, on PyTorch's meta device."""
    with torch.device("meta"), _NoInitialization():
        return SpikeGPT(config)


def check_finite(tensor: Tensor, name: str) -> None:
    """Raise CheckpointError when `tensor` holds NaN or infinity; reads it piece by piece."""
    for piece in tensor.reshape(-1).split(VALUES_CHECKED_AT_ONCE):
        bad = int((~torch.isfinite(piece)).sum())
        if bad:
            raise CheckpointError(f"{name} holds NaN or infinity ({bad} values at least).", "Train or convert it anew.")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, a handle is no mapping


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what PyTorch may not read; it is told below
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged or hostile pickle fails in many ways inside torch.load
        raise CheckpointError(
            f"{path} cannot be read as weights alone: {_fault(path, error)}.",
            "Fetch it again, save the state dict alone, or use safetensors.",
        ) from error
    state = inner(state)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds {type(state).__name__}, not a state dict.", "Save model.state_dict().")
    return state


def _fault(path: Path, error: Exception) -> str:
    """Why a pickled checkpoint cannot be read; what PyTorch says of it is its inner workings, or nothing."""
    if "Weights only load failed" in str(error):
        return "it is damaged or holds objects besides tensors"
    with path.open("rb") as file:
        archive = file.read(2) == b"PK"
    size = f"{path.stat().st_size:,} bytes"
    if archive and not zipfile.is_zipfile(path):
        return f"it is cut off, its {size} start an archive that has no end"
    return f"its {size} are damaged, cut off, or not what torch.save writes"


def _is_stored(tensor: Tensor) -> bool:
    """Whether every value has its own place in memory: not sparse, not without data, not expanded."""
    if tensor.layout != torch.strided or tensor.is_meta:
        return False
    reach = 1  # places that the axes so far span; a wider step of the next one cannot meet them
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride < reach:
            return False
        reach += stride * (size - 1)
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _check_shapes(state: Mapping[str, Tensor], config: SpikeGPTConfig, origin: str) -> None:
    expected, found = tensor_shapes(config), shapes_of(state)
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    wrong = [
        f"{name} {found[name]} for {expected[name]}"
        for name in expected
        if found.get(name, expected[name]) != expected[name]
    ]
    integers = [name for name, tensor in state.items() if not tensor.is_floating_point()]
    faults = {"missing": missing, "unknown": unknown, "of wrong shape": wrong, "not of floating point": integers}
    told = "; ".join(
        f"{kind}: {', '.join(names[:3])}{' ...' * (len(names) > 3)}" for kind, names in faults.items() if names
    )
    if told:
        raise CheckpointError(
            f"{origin} does not fit a SpikeGPT of {config.layers} layers, width {config.width}: {told}.",
            "Give a complete checkpoint with the published key names.",
        )
