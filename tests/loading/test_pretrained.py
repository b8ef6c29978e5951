"""Networks of transformers as checkpoints: folders of safetensors, packed models, and what is refused."""

import json

import pytest
import torch
from networks.llama import TYPES, tiny

from qslm import artifact
from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.errors import CheckpointError
from qslm.formats import Format
from qslm.loading.checkpoint import load_checkpoint
from qslm.loading.outline import read_outline
from qslm.models.causal import CausalLogits
from qslm.models.pretrained import NetworkConfig
from qslm.quantizers import RoundedSites
from qslm.runtime.sampling import stream

pytest.importorskip("transformers", reason="needs pip install 'qslm[llama]'")

IDS = torch.arange(40).reshape(2, 20)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_of_safetensors_is_opened(kind, tied, tmp_path):
    network = tiny(kind, tied=tied)
    network.save_pretrained(tmp_path)
    opened = load_checkpoint(tmp_path)
    with torch.inference_mode():
        assert torch.equal(opened.model(IDS), CausalLogits(network)(IDS))
    outline = read_outline(tmp_path)
    assert outline.anatomy == find_anatomy(opened.model) and outline.vocabulary_size == 40
    assert opened.file_bytes == outline.file_bytes == (tmp_path / "model.safetensors").stat().st_size
    assert opened.digest == load_checkpoint(tmp_path).digest
    assert opened.config["context_length"] == 64


@pytest.mark.parametrize("tied", [True, False])
def test_a_packed_network_is_opened_with_its_rounded_weights(tied, tmp_path):
    model = CausalLogits(tiny(tied=tied))
    anatomy = find_anatomy(model)
    allocation = Allocation.uniform(anatomy, Format.parse("int4-row"))
    artifact.write(tmp_path, RoundedSites(model.state_dict(), allocation), allocation, config=model.config.to_dict())
    state = artifact.read(tmp_path).state_dict()
    opened = load_checkpoint(tmp_path)
    assert all(torch.equal(value, state[name]) for name, value in opened.model.state_dict().items())
    model.load_state_dict(state)
    with torch.inference_mode():
        assert torch.equal(opened.model(IDS), model(IDS))
    assert read_outline(tmp_path).anatomy == anatomy


def test_token_by_token_it_answers_as_whole_windows():
    model = CausalLogits(tiny())
    kept, found = None, []
    for token in IDS[0]:
        logits, kept = model.advance(token[None], kept)
        found.append(logits)
    with torch.inference_mode():
        torch.testing.assert_close(torch.stack(found), model(IDS[:1])[0], atol=1e-5, rtol=0)
    assert stream.__annotations__["model"] is not None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "gpt2"}, r"type 'gpt2'. Its layers are model.layers.\*.mlp.down_proj, "),
        ({"model_type": 7}, "cannot be opened by transformers|type"),
        ({"hidden_size": -3}, "unusable|cannot be opened"),
        ({"num_hidden_layers": 1 << 30}, "unusable|cannot be opened"),
        ({"vocab_size": "many"}, "unusable|cannot be opened"),
    ],
)
def test_a_config_that_is_not_usable_is_refused(change, told, tmp_path):
    tiny().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for read in (load_checkpoint, read_outline):
        with pytest.raises(CheckpointError, match=told):
            read(tmp_path)


def test_weights_that_are_not_whole_are_refused(tmp_path):
    tiny().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be opened by transformers"):
        load_checkpoint(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"has no \.safetensors file"):
        load_checkpoint(tmp_path)


def test_weights_of_another_network_or_not_finite_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    tiny().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    for changed, told in (
        ({key: value for key, value in state.items() if key != name}, f"missing {name}"),
        (state | {"model.layers.2.mlp.up_proj.weight": state[name]}, "unexpected model.layers.2"),
        (state | {name: state[name] * float("nan")}, "up_proj.weight"),
    ):
        save_file({key: value.clone() for key, value in changed.items()}, path, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=told):
            load_checkpoint(tmp_path)


def test_where_a_folder_lies_does_not_matter(tmp_path):
    for name in ("one", "other"):
        tiny().save_pretrained(tmp_path / name)
    first, second = (load_checkpoint(tmp_path / name) for name in ("one", "other"))
    assert first.digest == second.digest and first.config == second.config
    assert str(tmp_path) not in json.dumps(first.config)


def test_a_gguf_that_is_none_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(CheckpointError, match="cannot be opened by transformers"):
        load_checkpoint(path)


def test_a_config_of_ours_says_what_is_wrong():
    for values in ({}, {"network": {"model_type": "llama"}}, {"network": [1]}):
        with pytest.raises(CheckpointError, match=r"here describes|here does not describe"):
            NetworkConfig.from_dict(values, "here")
