"""The native engine against PyTorch on the same dequantized weights, and against itself."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from networks.spikegpt import random_ids, random_spikegpt

from qslm import _native, artifact
from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.errors import ArtifactError, QslmError, TaskError
from qslm.formats import FLOAT16, FLOAT32, Format
from qslm.loading.checkpoint import load_checkpoint
from qslm.models.neurons import SpikeTrace
from qslm.quantizers import RoundedSites
from qslm.runtime import Engine, EngineNetwork, generate

CLOSE = 1e-4
TOKENS = 40


@pytest.fixture(autouse=True)
def best_kernels():
    yield
    _native.choose_kernels(None)


def packed(model, folder, format="int4-g64", vectors=FLOAT32) -> Path:
    allocation = Allocation.uniform(find_anatomy(model), Format.parse(format), vectors=vectors)
    sites = RoundedSites(model.state_dict(), allocation)
    artifact.write(folder, sites, allocation, config=model.config.to_dict())
    return folder


def shapes(**more):
    return {"vocabulary": 61, "width": 48, "layers": 3, "ffn_width": 160} | more


def traced(model, ids):
    """Logits, spikes and potentials of ids (tokens,) in PyTorch; the latter (tokens, neurons, width)."""
    trace = SpikeTrace()
    with torch.inference_mode():
        logits = model(ids[None], trace=trace)[0]
    return logits.numpy(), *(
        torch.cat(part).transpose(0, 1).contiguous().numpy() for part in (trace.spikes, trace.potentials)
    )


@pytest.mark.parametrize(
    "format", ["int8-row", "int4-g64", "int3-g32-s8", "int2-sym-row", "int5-tensor", "float32", "float16"]
)
@pytest.mark.parametrize("more", [{}, {"binary": False}, {"width": 130, "ffn_width": 300}])
def test_it_computes_what_pytorch_computes_on_the_dequantized_weights(tmp_path, format, more):
    original = random_spikegpt(**shapes(**more))
    folder = packed(original, tmp_path, format)
    model, ids = load_checkpoint(folder).model, random_ids(original, 1, TOKENS)[0]
    logits, spikes, wanted = traced(model, ids)
    assert 0.05 < spikes.mean() < 0.95
    engine, potentials = Engine(folder, floats=True), np.empty_like(wanted)
    engine.trace(spikes, potentials)
    assert np.abs(engine.advance_all(ids.tolist()) - logits).max() < CLOSE * max(1, np.abs(logits).max())
    near = np.abs(wanted - 1) < 1e-5
    assert np.array_equal((potentials >= 1) | near, (spikes != 0) | near) and near.mean() < 0.01


@pytest.mark.parametrize("format", ["int8-row", "int4-g64"])
def test_integer_activations_stay_close(tmp_path, format):
    original = random_spikegpt(**shapes(width=128, ffn_width=512))
    folder = packed(original, tmp_path, format, vectors=FLOAT16)
    model, ids = load_checkpoint(folder).model, random_ids(original, 1, TOKENS)[0]
    logits, spikes, _ = traced(model, ids)
    engine = Engine(folder)
    engine.trace(spikes, None)
    found = engine.advance_all(ids.tolist())
    error = np.linalg.norm(found - logits) / np.linalg.norm(logits)
    assert 1e-4 < error < 0.03
    assert not np.array_equal(found, Engine(folder, floats=True).advance_all(ids.tolist()))


def test_neither_chunks_nor_threads_nor_kernels_change_a_bit(tmp_path):
    original = random_spikegpt(**shapes(width=144, ffn_width=500, vocabulary=3000))
    folder = packed(original, tmp_path, "int5-g64")
    ids = random_ids(original, 1, TOKENS)[0].tolist()
    wanted = Engine(folder, threads=1, chunk=1).advance_all(ids)
    assert len(np.unique(wanted)) > 1000
    for name in _native.kernels():
        _native.choose_kernels(name)
        for threads, chunk in ((1, 8), (2, 3), (3, 64)):
            engine = Engine(folder, threads=threads, chunk=chunk)
            assert np.array_equal(engine.advance_all(ids), wanted)
            engine.reset()
            assert np.array_equal(engine.advance(ids[:7]), wanted[6])
            assert np.array_equal(engine.advance(ids[7:]), wanted[-1])


def test_a_state_goes_on_where_it_was_saved(tmp_path):
    original = random_spikegpt(**shapes())
    folder = packed(original, tmp_path)
    ids = random_ids(original, 1, TOKENS)[0].tolist()
    engine, other = Engine(folder), Engine(folder, threads=1)
    engine.advance(ids[:11])
    state = engine.save()
    wanted = engine.advance(ids[11:])
    other.advance([1, 2, 3])
    other.restore(state)
    assert np.array_equal(other.advance(ids[11:]), wanted)
    for wrong in (b"", state[:-1], state + b"\0", bytes(len(state))):
        with pytest.raises(ArtifactError, match="no state"):
            other.restore(wrong)


def test_a_classifier_pools_over_all_tokens(tmp_path):
    original = random_spikegpt(**shapes(classes=3))
    folder = packed(original, tmp_path, "int8-row")
    model, ids = load_checkpoint(folder).model, random_ids(original, 1, TOKENS)
    engine = Engine(folder, floats=True)
    with torch.inference_mode():
        wanted = model(ids)[0].numpy()
    assert np.abs(engine.classify(ids[0].tolist()) - wanted).max() < 0.05  # spikes near the threshold may differ
    assert np.array_equal(engine.classify(ids[0].tolist()), engine.classify(ids[0].tolist()))
    mask = torch.arange(TOKENS)[None] < torch.tensor([[TOKENS], [17]])
    logits = EngineNetwork(engine, model)(ids.expand(2, -1), mask)
    assert np.array_equal(logits[1].numpy(), engine.classify(ids[0, :17].tolist()))
    with pytest.raises(TaskError, match="classifier"):
        engine.advance([1])


def test_the_network_of_a_task_starts_every_window_anew(tmp_path):
    original = random_spikegpt(**shapes())
    folder = packed(original, tmp_path)
    engine, ids = Engine(folder), random_ids(original, 3, 12)
    logits = EngineNetwork(engine, original)(ids)
    engine.reset()
    assert np.array_equal(logits[2].numpy(), engine.advance_all(ids[2].tolist()))


def test_text_is_drawn_by_seed_and_greedy_text_is_the_argmax(tmp_path, small_tokenizer):
    original = random_spikegpt(**shapes(vocabulary=small_tokenizer.get_vocab_size()))
    engine = Engine(packed(original, tmp_path))
    texts = [generate(engine, small_tokenizer, "a film", tokens=30, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    ids = [5, 6]
    for _ in range(10):
        engine.reset()
        ids.append(int(engine.advance(ids).argmax()))
    assert list(engine.stream(ids[:2], 10, 0.0, 1.0, 0)) == ids[2:]


def test_draws_follow_the_probabilities_of_the_likeliest():
    logits, drawn, random = np.array([1.0, 3.0, 2.0, -9.0], np.float32), np.zeros(4), 7
    for _ in range(4000):
        token, random = _native.draw(logits.copy(), 1.0, 0.95, random)
        drawn[token] += 1
    weights = np.exp(logits[[1, 2, 0]].astype(float))
    assert drawn[3] == 0 and np.abs(drawn[[1, 2, 0]] / 4000 - weights / weights.sum()).max() < 0.03
    assert {_native.draw(logits.copy(), 1.0, 0.5, seed)[0] for seed in range(200)} == {1}
    assert _native.draw(logits.copy(), 0.0, 1.0, 1)[0] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "rwkv"}, "architecture rwkv"), ({"width": 40}, "config.json makes"),
        ({"width": 0}, "says 0 for width, which is none of 1 to 65536"),
        ({"layers": 4}, "no blocks.3"), ({"layers": 2}, "makes 2 layers, but the file has blocks.2"),
        ({"layers": 2**40}, "says 1099511627776 for layers"),
        ({"ffn_width": -1}, "says -1 for ffn_width"), ({"context_length": 0}, "says 0 for context_length"),
        ({"vocabulary_size": 60}, "config.json makes"), ({"classes": 2}, "no classifier.weight"),
        ({"classes": -1}, "says -1 for classes"),
        ({"width": "48"}, "behind the key width"), ({"binary_embedding": False}, "signs"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_fit_is_refused(tmp_path, change, message):
    original = random_spikegpt(**shapes())
    allocation = Allocation.uniform(find_anatomy(original), Format.parse("int4-row"))
    sites = RoundedSites(original.state_dict(), allocation)
    artifact.write(tmp_path, sites, allocation, config=original.config.to_dict() | change)
    with pytest.raises(ArtifactError, match=message) as caught:
        Engine(tmp_path)
    assert str(tmp_path) in caught.value.problem and caught.value.remedy


def test_what_is_no_packed_model_or_no_token_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        Engine(tmp_path / "none")
    original = random_spikegpt(**shapes())
    with pytest.raises(ArtifactError, match=r"does not run blocks.0.att.key.weight in int16-row"):
        Engine(packed(random_spikegpt(**shapes(binary=False)), tmp_path / "wide", "int16-row"))
    for name, value in (("chunk", 0), ("chunk", 4097), ("threads", 0), ("threads", -1)):
        with pytest.raises(QslmError, match=f"{name} is {value:,}, which is none of 1 to"):
            Engine(packed(original, tmp_path / "model"), **{name: value})
    engine = Engine(packed(original, tmp_path / "model"))
    for ids in ([], [61], [-1], [2**31], [-(2**40)], [1.5], [[1, 2]]):
        with pytest.raises(TaskError, match="token"):
            engine.advance(ids)
    with pytest.raises(TaskError, match="does not classify"):
        engine.classify([1])
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="bytes"):
        Engine(tmp_path / "model")


def test_the_config_of_a_packed_model_says_what_the_engine_says(tmp_path):
    original = random_spikegpt(**shapes())
    folder = packed(original, tmp_path)
    found = Engine(folder)
    assert found.config == {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if k != "qslm"}
    assert found.weight_bytes < (folder / "model.safetensors").stat().st_size
    assert 0 < found.memory_bytes < 2_000_000


def test_threads_of_python_wait_for_each_other(tmp_path):
    folder = packed(random_spikegpt(**shapes(width=256, ffn_width=1024, classes=3)), tmp_path)
    engine, texts = Engine(folder, threads=2), [list(range(first, first + 40)) for first in range(20)]
    wanted = [engine.classify(text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        assert np.array_equal(list(pool.map(engine.classify, 5 * texts, timeout=60)), 5 * wanted)
