"""Opening networks of `transformers`: a folder with config.json and safetensors, a GGUF file, or a packed model."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from qslm import folders
from qslm.anatomy import Anatomy
from qslm.anatomy.find import find_anatomy
from qslm.data.tokenizer import load_tokenizer
from qslm.errors import CheckpointError
from qslm.loading.locating import Found
from qslm.models.causal import CausalLogits
from qslm.models.checkpoint import check_finite
from qslm.models.encoder import EncoderLogits
from qslm.models.pretrained import ENCODER, KINDS, Kind, NetworkConfig
from qslm.models.shapes import read_shapes

INSTALL = "Install what opens it: pip install 'qslm[llama]'."

Network = CausalLogits | EncoderLogits
MOST_NAMED = 12  # layers of a network that is not known


@dataclass(frozen=True, eq=False)
class OpenedNetwork:
    """A network in float32, its tokenizer where it has one, and its files, which hold nothing that is run."""

    model: Network
    tokenizer: Tokenizer | None
    files: tuple[Path, ...]

    @property
    def file_bytes(self) -> int:
        """Of the weights on disk."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def digest(self) -> str:
        """The sha256 over all weight files and the config."""
        digest = hashlib.sha256()
        beside = [path for path in (self.files[0].with_name(folders.CONFIG),) if path.is_file()]
        for path in (*self.files, *beside):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def open_pretrained(path: Path) -> OpenedNetwork:
    """Open a GGUF file, dequantized, or a folder of safetensors; no code of the folder is run, nothing unpickled.

    Raises CheckpointError where `transformers` is missing or does not open it, or its type is not known.
    """
    files = _files(path)
    kind = _read_config(path).kind
    with _by_transformers(path) as transformers, torch.random.fork_rng(devices=[]):
        network, told = getattr(transformers, kind.maker).from_pretrained(
            **_given(path),
            dtype=torch.float32,
            use_safetensors=None if path.suffix == folders.GGUF else True,
            output_loading_info=True,
        )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, told.get(what) or ())):
            raise CheckpointError(
                f"{path}: its weights are not those that its config describes: {what.replace('_keys', '')} {names[0]}"
                + (f" and {len(names) - 1} more." if names[1:] else "."),
                f"Fetch or save it anew, as a {kind.name}.",
            )
    for name, value in network.state_dict().items():
        check_finite(value, f"{path}: {name}")
    return OpenedNetwork(_ours(network.eval().requires_grad_(False), kind), _tokenizer(path), files)


def outline_pretrained(found: Found) -> tuple[Anatomy, int, int, int | None]:
    """The anatomy, the vocabulary, the bytes of the file and the classes of what `find` has found.

    Raises CheckpointError.
    """
    packed, path = found.packed, found.weights
    config = NetworkConfig.from_dict(found.config, str(path)) if packed else _read_config(path)
    with torch.device("meta"):
        anatomy = find_anatomy(build(config, str(path)))
    size = path.stat().st_size if packed else sum(file.stat().st_size for file in _files(path))
    return anatomy, config.vocabulary_size, size, config.classes


def build(config: NetworkConfig, origin: str) -> Network:
    """A network of a config, with the weights that it is made with. Raises CheckpointError."""
    transformers = _transformers(origin)
    model_type = config.network["model_type"]
    fields = {name: value for name, value in config.network.items() if name != "model_type"}
    try:
        made = transformers.AutoConfig.for_model(model_type, **fields)
        with torch.random.fork_rng(devices=[]):  # the weights that it is made with are drawn
            network = getattr(transformers, config.kind.maker).from_config(made, dtype=torch.float32)
    except Exception as error:  # whatever a config that is not one makes of the constructors
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{origin} does not describe a network of transformers: {reason}.", "Check it."
        ) from error
    return _ours(network.eval(), config.kind)


def _ours(network: Any, kind: Kind) -> Network:
    """A network of transformers as one of ours."""
    return EncoderLogits(network) if kind is ENCODER else CausalLogits(network)


def _transformers(origin: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise CheckpointError(f"{origin} needs the package transformers.", INSTALL) from error
    return transformers


def load_pretrained(state: Mapping[str, Tensor], config: Mapping[str, Any], *, origin: str) -> Network:
    """A network in evaluation mode from a state dict of a network of ours and `NetworkConfig.to_dict`.

    Raises CheckpointError where they do not suit each other, and on NaN or infinity.
    """
    known = NetworkConfig.from_dict(config, origin)
    with torch.device("meta"):  # so that a damaged config does not take memory
        made = build(known, origin).state_dict()
    wanted, found = ({name: tuple(one.shape) for name, one in some.items()} for some in (made, state))
    if wanted != found:
        name = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))[0]
        raise CheckpointError(
            f"{origin}: {name} has the shape {found.get(name)}, its config says {wanted.get(name)}.",
            "Fetch or pack it anew.",
        )
    for name, tensor in state.items():
        check_finite(tensor, f"{origin}: {name}")
    model = build(known, origin)
    model.load_state_dict(dict(state))
    return model.requires_grad_(False).eval()


def _files(path: Path) -> tuple[Path, ...]:
    """The files of weights. Raises CheckpointError where there are none that we open."""
    files = (path,) if path.suffix == folders.GGUF else tuple(sorted(path.glob("*.safetensors")))
    if not files:
        raise CheckpointError(f"{path} has no .safetensors file.", "Save the network with safetensors.")
    return files


def _given(path: Path) -> dict[str, Any]:
    """What the loaders of transformers are given: no network, no code of others."""
    gguf = path.suffix == folders.GGUF
    where = {"pretrained_model_name_or_path": path.parent if gguf else path}
    return where | ({"gguf_file": path.name} if gguf else {}) | {"local_files_only": True, "trust_remote_code": False}


def _read_config(path: Path) -> NetworkConfig:
    with _by_transformers(path) as transformers:
        found = transformers.AutoConfig.from_pretrained(**_given(path))
    try:
        config = NetworkConfig.of(found, str(path))
    except CheckpointError as error:
        if any(getattr(found, "model_type", None) in kind.sizes for kind in KINDS):
            raise
        raise CheckpointError(f"{error.problem} {_layers(path)}".strip(), error.remedy) from error
    classes = config.network.get("architectures") or [config.kind.ending]
    if not any(str(name).endswith(config.kind.ending) for name in classes):
        raise CheckpointError(
            f"{path} holds a {', '.join(map(str, classes))[:80]}, which has not the head of a {config.kind.name}.",
            f"Fine-tune and save it as one: a class that ends in {config.kind.ending}.",
        )
    return config


def _layers(path: Path) -> str:
    """Which matrices the blocks of a network have, in a sentence; empty where its file does not tell."""
    shapes = {} if path.suffix == folders.GGUF else read_shapes(_files(path)[0]) or {}
    matrices = [name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2]
    found = dict.fromkeys(re.sub(r"\d+", "*", name) for name in matrices)
    shown = [name for name in found if "*" in name][:MOST_NAMED]
    return f"Its layers are {', '.join(shown)}." if shown else ""


@contextmanager
def _by_transformers(path: Path) -> Iterator[Any]:
    """The package; whatever it raises in the meantime is a CheckpointError."""
    transformers = _transformers(str(path))
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield transformers
    except Exception as error:  # it fails in many ways on files that are not as it expects
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        problem = f"{path} cannot be opened by transformers: {reason.rstrip('.:')}."
        raise CheckpointError(problem, "Check its files.") from error
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


def _tokenizer(path: Path) -> Tokenizer | None:
    """That of a GGUF file, or tokenizer.json beside the weights."""
    if path.suffix != folders.GGUF:
        beside = path / folders.TOKENIZER
        return load_tokenizer(beside) if beside.is_file() else None
    with _by_transformers(path) as transformers:
        found: Tokenizer = transformers.AutoTokenizer.from_pretrained(**_given(path)).backend_tokenizer
    return found
