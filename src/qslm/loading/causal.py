"""Opening causal language models of `transformers`: a folder with config.json and safetensors, or a GGUF file."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from qslm import folders
from qslm.anatomy import Anatomy
from qslm.anatomy.find import find_anatomy
from qslm.data.tokenizer import load_tokenizer
from qslm.errors import CheckpointError
from qslm.loading.locating import Found
from qslm.models.causal import INSTALL, CausalConfig, CausalLogits, build
from qslm.models.checkpoint import check_finite


@dataclass(frozen=True, eq=False)
class OpenedCausal:
    """A network in float32, its tokenizer where it has one, and its files, which hold nothing that is run."""

    model: CausalLogits
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


def open_causal(path: Path) -> OpenedCausal:
    """Open a GGUF file, dequantized, or a folder of safetensors; no code of the folder is run, nothing unpickled.

    Raises CheckpointError where `transformers` is missing or does not open it, or its type is not known.
    """
    files = _files(path)
    _read_config(path)
    with _by_transformers(path) as transformers, torch.random.fork_rng(devices=[]):
        network, told = transformers.AutoModelForCausalLM.from_pretrained(
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
                "Fetch or save it anew, as a causal language model.",
            )
    for name, value in network.state_dict().items():
        check_finite(value, f"{path}: {name}")
    return OpenedCausal(CausalLogits(network.eval().requires_grad_(False)), _tokenizer(path), files)


def outline_causal(found: Found) -> tuple[Anatomy, int, int]:
    """The anatomy, the vocabulary and the bytes of the file of what `find` has found. Raises CheckpointError."""
    packed, path = found.packed, found.weights
    config = CausalConfig.from_dict(found.config, str(path)) if packed else _read_config(path)
    with torch.device("meta"):
        anatomy = find_anatomy(build(config, str(path)))
    size = path.stat().st_size if packed else sum(file.stat().st_size for file in _files(path))
    return anatomy, config.vocabulary_size, size


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


def _read_config(path: Path) -> CausalConfig:
    with _by_transformers(path) as transformers:
        found = transformers.AutoConfig.from_pretrained(**_given(path))
    return CausalConfig.of(found, str(path))


@contextmanager
def _by_transformers(path: Path) -> Iterator[Any]:
    """The package; whatever it raises in the meantime is a CheckpointError."""
    try:
        import transformers
    except ImportError as error:
        raise CheckpointError(f"{path} is a network of transformers, which is not installed.", INSTALL) from error
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
