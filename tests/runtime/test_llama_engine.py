"""The native engine on networks built as Llama, with numbers and with spike counts, against PyTorch."""

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from networks.llama import tiny

from qslm import artifact
from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.conversion.convert import Conversion, convert
from qslm.errors import ArtifactError, TaskError
from qslm.formats import Format
from qslm.loading.checkpoint import load_checkpoint
from qslm.models.causal import CausalLogits
from qslm.quantizers import RoundedSites
from qslm.runtime import Engine

IDS = torch.randint(40, (30,), generator=torch.Generator().manual_seed(3))


def packed(model, folder, format):
    allocation = Allocation.uniform(find_anatomy(model), Format.parse(format))
    artifact.write(folder, RoundedSites(model.state_dict(), allocation), allocation, config=model.config.to_dict())
    return folder


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("format", ["int8-row", "int4-g32", "float32"])
def test_it_computes_what_pytorch_computes_on_the_dequantized_weights(tmp_path, kind, tied, format):
    folder = packed(CausalLogits(tiny(kind, tied=tied)), tmp_path, format)
    with torch.inference_mode():
        wanted = load_checkpoint(folder).model(IDS[None])[0].numpy()
    engine = Engine(folder, floats=True)
    found = engine.advance_all(IDS.tolist())
    assert np.abs(found - wanted).max() < 1e-4 * max(1, np.abs(wanted).max())
    rounded = Engine(folder).advance_all(IDS.tolist())
    assert 0 <= np.linalg.norm(rounded - wanted) / np.linalg.norm(wanted) < 0.05
    assert (format == "float32") == np.array_equal(rounded, found)


def test_neither_chunks_nor_threads_change_a_bit_and_a_state_goes_on(tmp_path):
    folder = packed(CausalLogits(tiny()), tmp_path, "int4-g32")
    wanted = Engine(folder, threads=1, chunk=1).advance_all(IDS.tolist())
    for threads, chunk in ((1, 8), (2, 3), (3, 64)):
        assert np.array_equal(Engine(folder, threads=threads, chunk=chunk).advance_all(IDS.tolist()), wanted)
    engine, other = Engine(folder), Engine(folder)
    engine.advance(IDS[:11].tolist())
    other.restore(engine.save())
    assert np.array_equal(other.advance(IDS[11:].tolist()), wanted[-1])


def test_a_full_context_is_refused(tmp_path):
    engine = Engine(packed(CausalLogits(tiny()), tmp_path, "int4-row"))
    engine.advance([1] * 60)
    with pytest.raises(TaskError, match="context of 64 tokens is full: 60 were seen, 5 are to come"):
        engine.advance([1] * 5)
    engine.advance([1] * 4)
    engine.reset()
    engine.advance([1] * 64)


@pytest.mark.parametrize("kind", ["mistral", "gemma"])
def test_other_types_are_refused_by_name(tmp_path, kind):
    with pytest.raises(ArtifactError, match="types llama and qwen2"):
        Engine(packed(CausalLogits(tiny(kind)), tmp_path, "int4-row"))
