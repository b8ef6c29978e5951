"""Folding rotations into a Llama offline: the same logits, from a stream and values without outlying channels.

The stream x becomes x R: norms that scale single channels are folded into the matrices behind them first, which leaves
RMSNorm without weights, and that commutes with R. The values v of every head become v H; what attention mixes of them
is mixed alike. QuaRot's R1 and R2 (Ashkboos et al., NeurIPS 2024). The stream's rotation unties a tied head.

What a feed-forward layer multiplies last comes out of a product, through which no rotation goes: it can be turned only
online, by additions while the network runs (`online`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qslm.conversion.llama import Llama
from qslm.errors import CheckpointError
from qslm.models.hadamard import Rotation, Turn


@dataclass(frozen=True)
class Rotated:
    """What was folded: the rotations of the stream and of every head, and the bytes that an untied head costs.

    untied_bytes: in float32; 0 where the head was a matrix of its own. inner: the rotation of the feed-forward layers'
    products, where it is applied online.
    """

    stream: Rotation
    heads: Rotation
    untied_bytes: int
    inner: Rotation | None


@torch.no_grad()
def rotate(network: nn.Module, *, online: bool = False) -> Rotated:
    """Fold the rotations into the weights of a network, in double precision; `online` also puts a `Turn` in front of
    the matrix behind every feed-forward product. Raises CheckpointError (`Llama.of`).
    """
    llama = Llama.of(network)
    if any(isinstance(module, Turn) for module in network.modules()):
        raise CheckpointError("The network is rotated already.", "Rotate the network as it was loaded.")
    stream, heads = Rotation.of(llama.width), Rotation.of(llama.head_width)
    untied = _untie(llama)
    for norm, readers in llama.readers():
        scale = norm.weight.double() + llama.offset
        for reader in readers:
            _put(reader.weight, stream.apply(reader.weight.double() * scale))
        norm.weight.fill_(1 - llama.offset)
    _put(llama.embedding.weight, stream.apply(llama.embedding.weight.double()))
    for writer in llama.writers():
        _turn_outputs(writer, stream)
    for values, reader in llama.values():
        _turn_outputs(values, heads)
        split = reader.weight.double().unflatten(1, (-1, heads.width))
        _put(reader.weight, heads.apply(split).flatten(1))
    inner = Rotation.of(llama.inner_width) if online else None
    if inner is not None:
        for block in llama.blocks:
            down = block.mlp.down_proj
            _put(down.weight, inner.apply(down.weight.double()))
            block.mlp.down_proj = nn.Sequential(Turn(inner), down)
    return Rotated(stream, heads, untied, inner)


def _untie(llama: Llama) -> int:
    """Give the head a matrix of its own; its bytes, where it had none."""
    if llama.head.weight is not llama.embedding.weight:
        return 0
    llama.head.weight = nn.Parameter(llama.head.weight.detach().clone(), requires_grad=False)
    llama.network.config.tie_word_embeddings = False
    return llama.head.weight.nbytes


def _turn_outputs(layer: nn.Linear, rotation: Rotation) -> None:
    """Rotate every `rotation.width` outputs of a layer among each other."""
    for parameter in (layer.weight, layer.bias):
        if parameter is not None:
            split = parameter.double().unflatten(0, (-1, rotation.width))
            _put(parameter, rotation.apply(split.transpose(1, -1)).transpose(1, -1).flatten(0, 1))


def _put(parameter: Tensor, value: Tensor) -> None:
    parameter.copy_(value.to(parameter.dtype))
