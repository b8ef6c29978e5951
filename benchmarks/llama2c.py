"""Llamas in llama2.c's first format (Karpathy 2023, MIT), as networks of `transformers`.

A file is seven int32 (width, width of the feed-forward layers, layers, heads, heads of keys and values, vocabulary,
which is negative where the classifier is not the embedding, context) and then float32 tensors, those of all layers
stacked, in the order of `Header.shapes`. All is little-endian. llama2.c's `run.c` reads the same.
"""

import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Prepend
from torch import Tensor

from qslm.errors import CheckpointError

FIELDS = struct.Struct("<7i")
NORM_EPSILON, ROTARY_BASE = 1e-5, 10000.0  # the format does not say; run.c has them in its code
ANOTHER = "Give the complete file of a float32 model in llama2.c's first format, such as stories260K.bin."
PIECE = struct.Struct("<fi")
ANOTHER_TOKENIZER = "Give the tokenizer of llama2.c that belongs to the model, such as tok512.bin."
OF_LAYERS = {  # llama2.c's stacked tensors, and the layer of transformers that gets one of them each
    "rms_att": "input_layernorm",
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "rms_ffn": "post_attention_layernorm",
    "w1": "mlp.gate_proj",
    "w2": "mlp.down_proj",
    "w3": "mlp.up_proj",
}


@dataclass(frozen=True)
class Header:
    """What the seven numbers say; `tied` that the classifier is the embedding.

    Raises CheckpointError for numbers that make no network.
    """

    width: int
    inner_width: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    context: int
    tied: bool

    def __post_init__(self) -> None:
        sizes = (self.width, self.inner_width, self.layers, self.heads, self.key_heads, self.vocabulary, self.context)
        if min(sizes) < 1 or self.heads % self.key_heads or self.width % (2 * self.heads):
            raise CheckpointError(
                f"The header says {self.layers} layers of width {self.width} and {self.inner_width}, {self.heads} "
                f"heads, {self.key_heads} of keys, {self.vocabulary} tokens, a context of {self.context}: "
                "there is no such Llama.",
                ANOTHER,
            )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors in the order of the file; matrices are (layers, out, in)."""
        layers, width, inner, keys = self.layers, self.width, self.inner_width, self.head_size * self.key_heads
        shapes: dict[str, tuple[int, ...]] = {
            "embedding": (self.vocabulary, width),
            "rms_att": (layers, width),
            "wq": (layers, width, width),
            "wk": (layers, keys, width),
            "wv": (layers, keys, width),
            "wo": (layers, width, width),
            "rms_ffn": (layers, width),
            "w1": (layers, inner, width),
            "w2": (layers, width, inner),
            "w3": (layers, inner, width),
            "rms_final": (width,),
            "rotary": (2, self.context, self.head_size // 2),  # cosines and sines, which follow from ROTARY_BASE
        }
        return shapes if self.tied else {**shapes, "classifier": (self.vocabulary, width)}

    @property
    def head_size(self) -> int:
        """Numbers of one head."""
        return self.width // self.heads

    @property
    def file_bytes(self) -> int:
        """What a file of these tensors takes, in bytes."""
        return FIELDS.size + 4 * sum(map(prod, self.shapes.values()))


def read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """Header and tensors of a file, by the names of `Header.shapes`.

    Nothing is read before the header and the size of the file agree. Raises CheckpointError, which names the file, when
    it cannot be read, has another size than its header says, or holds numbers that are not finite.
    """
    try:
        with path.open("rb") as file:
            header = _header(file.read(FIELDS.size))
            found = os.fstat(file.fileno()).st_size
            if found != header.file_bytes:
                raise CheckpointError(f"It has {found:,} bytes, its header says {header.file_bytes:,}.", ANOTHER)
            numbers = torch.from_numpy(np.fromfile(file, "<f4"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.", ANOTHER) from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.problem}", error.remedy) from error
    parts = numbers.split([prod(shape) for shape in header.shapes.values()])
    tensors = {name: part.view(shape) for (name, shape), part in zip(header.shapes.items(), parts, strict=True)}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: {name} has numbers that are not finite.", ANOTHER)
    return header, tensors


def load(path: Path) -> Any:
    """The `LlamaForCausalLM` of a file, in evaluation mode. Raises CheckpointError as `read` does."""
    from transformers import LlamaConfig, LlamaForCausalLM

    header, tensors = read(path)
    config = LlamaConfig(
        vocab_size=header.vocabulary,
        hidden_size=header.width,
        intermediate_size=header.inner_width,
        num_hidden_layers=header.layers,
        num_attention_heads=header.heads,
        num_key_value_heads=header.key_heads,
        max_position_embeddings=header.context,
        rms_norm_eps=NORM_EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": ROTARY_BASE},
        tie_word_embeddings=header.tied,
    )
    with torch.random.fork_rng(devices=[]):  # the weights that it is made with are drawn
        network = LlamaForCausalLM(config)
    network.load_state_dict(_state(header, tensors))
    return network.eval()


def _header(raw: bytes) -> Header:
    if len(raw) < FIELDS.size:
        raise CheckpointError(f"It ends after {len(raw)} bytes, within its header.", ANOTHER)
    width, inner_width, layers, heads, key_heads, vocabulary, context = FIELDS.unpack(raw)
    return Header(width, inner_width, layers, heads, key_heads, abs(vocabulary), context, tied=vocabulary > 0)


def _state(header: Header, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the network."""
    stacked = {name: tensors[name] for name in OF_LAYERS}
    stacked["wq"] = _halves(stacked["wq"], header.heads)
    stacked["wk"] = _halves(stacked["wk"], header.key_heads)
    return {
        "model.embed_tokens.weight": tensors["embedding"],
        "model.norm.weight": tensors["rms_final"],
        "lm_head.weight": tensors["embedding" if header.tied else "classifier"],
        **{
            f"model.layers.{index}.{OF_LAYERS[name]}.weight": tensor
            for name, tensors_of_layers in stacked.items()
            for index, tensor in enumerate(tensors_of_layers)
        },
    }


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows (layers, out, in) of every head in another order: 0, 2, 4, ... and then 1, 3, 5, ...

    llama2.c rotates the outputs 2i and 2i + 1 of a head together, transformers i and i + head_size / 2.
    """
    layers, rows, columns = weight.shape
    return weight.view(layers, heads, -1, 2, columns).transpose(2, 3).reshape(layers, rows, columns)


def load_tokenizer(path: Path, vocabulary: int) -> Tokenizer:
    """The tokenizer of a file of llama2.c: pieces with scores, of which the best pair is merged first.

    The file is an int32, then a float32 score, an int32 length and the bytes of every piece. As in `run.c` a text
    begins with a space, and a character without a piece becomes its bytes. Raises CheckpointError where the file is
    something else, or has other than `vocabulary` pieces.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.", ANOTHER_TOKENIZER) from error
    pieces, place = [], 4
    while place < len(raw):
        if place + PIECE.size > len(raw):
            break
        score, length = PIECE.unpack_from(raw, place)
        place += PIECE.size + length
        if length < 1 or place > len(raw):
            break
        pieces.append((score, raw[place - length : place].decode(errors="replace")))
    if place != len(raw) or len(pieces) != vocabulary:
        raise CheckpointError(f"{path} does not hold the {vocabulary} pieces of a tokenizer.", ANOTHER_TOKENIZER)
    ids = {piece: number for number, (_, piece) in enumerate(pieces)}
    pairs = sorted(
        (-score, number, (piece[:cut], piece[cut:]))
        for number, (score, piece) in enumerate(pieces)
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    )
    found = Tokenizer(BPE(vocab=ids, merges=[pair for _, _, pair in pairs], unk_token="<unk>", byte_fallback=True))
    found.normalizer = Prepend(" ")
    return found
