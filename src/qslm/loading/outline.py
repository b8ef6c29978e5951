"""What a checkpoint's network looks like, from names and shapes alone, without loading PyTorch.

But for `.pth` files that are no archives, or hold more than tensors: what is in them only PyTorch tells; and for
networks of transformers, which are made without weights.
"""

from dataclasses import dataclass
from pathlib import Path

from qslm import packed
from qslm.anatomy import INPUT, OUTPUT, Anatomy, Site
from qslm.loading.locating import Found, find
from qslm.models.config import Shapes, SpikeGPTConfig, infer_config, tensor_shapes
from qslm.models.shapes import read_shapes


@dataclass(frozen=True)
class Outline:
    """What `anatomy.find.find_anatomy` finds in a network, the ids that it knows, and the bytes of its file.

    classes: of a classifier, None for a language model.
    """

    anatomy: Anatomy
    vocabulary_size: int
    file_bytes: int
    classes: int | None = None


def read_outline(source: str | Path, binary_embedding: str = "auto") -> Outline:
    """The outline of what `source` names, at once, however large it is.

    An embedding is taken as binarized where neither `binary_embedding` nor `config.json` says otherwise. Raises
    CheckpointError, or ArtifactError for a packed model.
    """
    found = find(source, binary_embedding)
    if found.pretrained:
        from qslm.loading.pretrained import outline_pretrained

        return Outline(*outline_pretrained(found))
    config = infer_config(_shapes(found), found.config, str(found.weights))
    return Outline(anatomy_of(config), config.vocabulary_size, found.weights.stat().st_size, config.classes)


def anatomy_of(config: SpikeGPTConfig) -> Anatomy:
    """What `anatomy.find.find_anatomy` finds in a SpikeGPT."""
    return Anatomy(tuple(_site(name, shape, config) for name, shape in tensor_shapes(config).items()))


def _shapes(found: Found) -> Shapes:
    if found.packed:
        manifest = packed.read_manifest(found.weights.parent, packed.read_config(found.weights.parent)[1])
        return {name: shape for name, (_, shape) in manifest.sites.items()}
    shapes = read_shapes(found.weights)
    if shapes is None:
        from qslm.models.checkpoint import read_state, shapes_of

        shapes = shapes_of(read_state(found.weights))
    return shapes


def _site(name: str, shape: tuple[int, ...], config: SpikeGPTConfig) -> Site:
    module = name.rpartition(".")[0]
    if module.startswith("blocks."):
        _, layer, module = module.split(".", 2)
        return Site(name, shape, f"attention {layer}", module, sparse=module == "ffn.value")
    block = INPUT if module == "emb" else OUTPUT
    return Site(name, shape, block, module, binarized=module == "emb" and config.binary_embedding)
