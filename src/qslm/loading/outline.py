"""What a checkpoint's network looks like, from names and shapes alone; without PyTorch, but for `.pth` files."""

from pathlib import Path
from typing import Any

from qslm import folders
from qslm.anatomy import INPUT, OUTPUT, Anatomy, Site
from qslm.errors import CheckpointError
from qslm.formats.manifest import Manifest
from qslm.formats.reading import metadata_of, read_header
from qslm.loading.locating import locate, read_config, weight_file
from qslm.models.config import Shapes, SpikeGPTConfig, infer_config, tensor_shapes
from qslm.models.header import read_shapes


def read_sizes(source: str | Path, binary_embedding: str = "auto") -> SpikeGPTConfig:
    """The sizes of the SpikeGPT that `source` names, at once, however large it is.

    An embedding is taken as binarized where neither `binary_embedding` nor `config.json` says otherwise. Raises
    CheckpointError, or ArtifactError for a packed model.
    """
    path = locate(source)
    folder = path.parent if path.name == folders.MODEL else path
    if folders.is_packed(folder):
        return _packed_sizes(folder)
    weights = weight_file(path)
    config = read_config(weights.with_name(folders.CONFIG))
    if binary_embedding != "auto":
        config = {**config, "binary_embedding": binary_embedding == "true"}
    return infer_config(_shapes(weights), config, str(weights))


def read_anatomy(source: str | Path, binary_embedding: str = "auto") -> Anatomy:
    """What `anatomy.find.find_anatomy` finds in the network of `source`, without making it. Raises as `read_sizes`."""
    return outline(read_sizes(source, binary_embedding))


def outline(config: SpikeGPTConfig) -> Anatomy:
    """The anatomy of a SpikeGPT of these sizes."""
    return Anatomy(tuple(_site(name, shape, config) for name, shape in tensor_shapes(config).items()))


def spikegpt_only(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The config of a packed SpikeGPT. Raises CheckpointError where another network was packed."""
    architecture = config.get("architecture")
    if architecture != "spikegpt":
        raise CheckpointError(
            f"{folder} is a packed model of another network, {str(architecture)[:80]}, and only a SpikeGPT is built.",
            f"Read its weights in Python: qslm.artifact.read({str(folder)!r}).state_dict(), for your own network.",
        )
    return config


def _packed_sizes(folder: Path) -> SpikeGPTConfig:
    from qslm import artifact

    config = spikegpt_only(artifact.read_config(folder), folder)
    manifest = Manifest.parse(metadata_of(read_header(folder / folders.MODEL)))
    return infer_config({name: shape for name, (_, shape) in manifest.sites.items()}, config, str(folder))


def _shapes(weights: Path) -> Shapes:
    if weights.suffix == ".safetensors":
        return read_shapes(weights)
    from qslm.models.checkpoint import read_state, shapes_of

    return shapes_of(read_state(weights))


def _site(name: str, shape: tuple[int, ...], config: SpikeGPTConfig) -> Site:
    module = name.rpartition(".")[0]
    if module.startswith("blocks."):
        _, layer, module = module.split(".", 2)
        return Site(name, shape, f"attention {layer}", module)
    block = INPUT if module == "emb" else OUTPUT
    return Site(name, shape, block, module, binarized=module == "emb" and config.binary_embedding)
