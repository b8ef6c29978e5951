"""Everything that may name a checkpoint opens, and what does not says so."""

import json
import shutil
import sys
import types

import pytest
import torch
from networks.spikegpt import random_ids, random_spikegpt
from networks.tied import TiedNetwork
from safetensors.torch import save_file

import qslm.loading.checkpoint
from qslm import artifact
from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.data.source import Source
from qslm.data.tokenizer import encode
from qslm.data.wikitext2 import TextCorpus
from qslm.errors import ArtifactError, CheckpointError, DataError, QslmError
from qslm.formats import Format
from qslm.loading import locating
from qslm.loading.checkpoint import load_checkpoint, load_model
from qslm.loading.locating import locate, shipped_names
from qslm.loading.outline import read_outline
from qslm.quantizers import RoundedSites


@pytest.fixture
def network(small_tokenizer):
    return random_spikegpt(small_tokenizer.get_vocab_size(), 12, 2, 20)


@pytest.fixture
def folder(network, small_tokenizer, tmp_path):
    """A checkpoint as `qslm train` leaves it."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(network.config.to_dict()))
    (folder / "tokenizer.json").write_text(small_tokenizer.to_str())
    return folder


def same_logits(model, other):
    ids = random_ids(other, 2, 9)
    return torch.equal(model(ids), other(ids))


def test_folder_and_file_open_alike(folder, network):
    opened = [load_checkpoint(path) for path in (folder, str(folder), folder / "model.safetensors")]
    for checkpoint in opened:
        assert same_logits(checkpoint.model, network) and checkpoint.config == network.config.to_dict()
        assert checkpoint.tokenizer is not None and checkpoint.allocation is None
        assert checkpoint.file_bytes == (folder / "model.safetensors").stat().st_size
    assert len({checkpoint.digest for checkpoint in opened}) == 1
    assert opened[0].name == "checkpoint"


def test_training_state_beside_the_weights_is_passed_over(folder, network):
    (folder / "model.safetensors").rename(folder / "best.safetensors")
    (folder / "training.pt").write_bytes(b"not weights")
    assert same_logits(load_model(folder), network)


def test_folder_without_or_with_many_weights_is_refused(folder):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    shutil.copy(folder / "a.safetensors", folder / "b.pth")
    with pytest.raises(CheckpointError, match=r"holds a.safetensors, b.pth"):
        load_model(folder)
    (folder / "a.safetensors").unlink()
    (folder / "b.pth").unlink()
    with pytest.raises(CheckpointError, match="holds none"):
        load_model(folder)


def test_shipped_name_opens(folder, network, monkeypatch):
    monkeypatch.setattr(locating, "SHIPPED", folder.parent)
    assert shipped_names() == ["checkpoint"]
    assert same_logits(load_model("checkpoint"), network)
    with pytest.raises(CheckpointError, match="one of: checkpoint"):
        load_model("chekpoint")


def test_where_nothing_is_shipped_none_is_named(tmp_path, hub, monkeypatch):
    monkeypatch.setattr(locating, "SHIPPED", tmp_path)
    hub.snapshot_download = lambda *_, **__: 1 / 0
    for source, remedy in (
        ("chekpoint", "Give a path, or a Hub id."),
        ("someone/model", "Check the name and the network, or give a path."),
    ):
        with pytest.raises(CheckpointError) as caught:
            load_model(source)
        assert caught.value.remedy == remedy


@pytest.mark.parametrize(
    "source", ["", " ", "nothing", "no/such/folder", "none.pth", "a/none.safetensors", "\0", "x" * 5000]
)
def test_what_names_nothing_is_refused(source, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError):
        locate(source)


@pytest.fixture
def hub(monkeypatch):
    """A Hugging Face client whose `snapshot_download` a test sets."""
    client = types.ModuleType("huggingface_hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    return client


def test_hub_id_is_fetched(hub, folder, network):
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    hub.snapshot_download = snapshot_download
    assert same_logits(load_model("someone/some-model_1.0"), network)
    assert asked[0][0] == "someone/some-model_1.0" and "config.json" in asked[0][1]


@pytest.mark.parametrize("error", [OSError("no network\nsecond line"), ValueError(""), RuntimeError("404")], ids=repr)
def test_hub_failure_says_why_and_what_is_shipped(error, hub):
    def snapshot_download(name, allow_patterns):
        raise error

    hub.snapshot_download = snapshot_download
    with pytest.raises(CheckpointError, match="the Hub did not give it") as caught:
        load_model("someone/model")
    assert (str(error).split("\n")[0] or "ValueError") in caught.value.problem
    assert "second line" not in caught.value.problem


def test_missing_hub_client_is_the_projects_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="the Hub did not give it"):
        load_model("someone/model")


def test_another_tokenizer_than_the_checkpoints_own_is_refused(folder, packed, small_tokenizer, tmp_path):
    other = json.loads(small_tokenizer.to_str())
    other["added_tokens"].append({**other["added_tokens"][0], "id": 999, "content": "<|other|>"})
    (tmp_path / "other.json").write_text(json.dumps(other))
    (tmp_path / "same.json").write_text(json.dumps(json.loads(small_tokenizer.to_str()), indent=1))
    for place in (folder, packed[0]):
        assert (
            load_checkpoint(place, tokenizer=tmp_path / "same.json").tokenizer.get_vocab()
            == small_tokenizer.get_vocab()
        )
        with pytest.raises(DataError, match=r"(?s)carries its own tokenizer, of 289 .* another, of 290 "):
            load_checkpoint(place, tokenizer=tmp_path / "other.json")
        with pytest.raises(DataError, match="no tokenizer at"):
            load_checkpoint(place, tokenizer=tmp_path / "none.json")
    (folder / "tokenizer.json").unlink()
    found = load_checkpoint(folder, tokenizer=str(tmp_path / "other.json")).tokenizer
    assert found.token_to_id("<|other|>") is not None


def test_a_tokenizer_of_far_fewer_tokens_is_asked_about(small_tokenizer, tmp_path, listener):
    (tmp_path / "tokenizer.json").write_text(small_tokenizer.to_str())
    for words, asked in ((578, False), (579, True)):
        torch.save(random_spikegpt(words, 12, 2, 20).state_dict(), tmp_path / "m.pth")
        load_checkpoint(tmp_path / "m.pth", binary_embedding=True, progress=listener)
        assert len(listener.messages) == asked
    assert "has 289 tokens and the model's vocabulary 579: is it the one" in listener.messages[0]


def test_checkpoint_without_tokenizer_has_none(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "m.pth")
    checkpoint = load_checkpoint(tmp_path / "m.pth")
    assert checkpoint.tokenizer is None and checkpoint.model.config.binary_embedding


@pytest.mark.parametrize("content", ["{", "\x00", "[" * 100_000, '"text"', '{"architecture": "bert", "width": 3}'])
def test_config_of_another_program_is_passed_over_and_damaged_json_refused(content, folder, network):
    (folder / "config.json").write_text(content)
    if content.startswith(('"', '{"')):
        assert load_model(folder).config.width == network.config.width
    else:
        with pytest.raises(CheckpointError, match="not readable JSON"):
            load_model(folder)


def test_config_that_contradicts_the_weights_is_refused(folder, network):
    (folder / "config.json").write_text(json.dumps(network.config.to_dict() | {"layers": 5}))
    with pytest.raises(CheckpointError, match="layers = 5, the tensors say 2"):
        load_model(folder)


# ---- the embedding: binarized or real ---------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["true", "false", True, False])
def test_named_embedding_is_taken(choice, folder):
    checkpoint = load_checkpoint(folder, binary_embedding=choice)
    assert checkpoint.model.config.binary_embedding == (str(choice).lower() == "true")


def test_embedding_changes_the_digest(folder):
    digests = [load_checkpoint(folder, binary_embedding=choice).digest for choice in (True, False)]
    assert digests[0] != digests[1]


def test_unknown_embedding_is_refused(folder):
    with pytest.raises(CheckpointError, match="binary_embedding is 'perhaps'"):
        load_checkpoint(folder, binary_embedding="perhaps")


def test_config_decides_the_automatic_embedding(folder, network):
    (folder / "config.json").write_text(json.dumps(network.config.to_dict() | {"binary_embedding": False}))
    assert not load_model(folder).config.binary_embedding


def fit_head(model, ids):
    """Make `model` a better language model for `ids` than one with the other embedding."""
    x, _ = model.hidden(ids[None, :-1], None, None)
    table = torch.zeros(model.config.vocabulary_size, len(ids) - 1)
    table[ids[1:], torch.arange(len(ids) - 1)] = 10
    model.head.weight.copy_(torch.linalg.lstsq(x[0], table.T).solution.T)


@pytest.mark.parametrize("binary", [True, False])
def test_automatic_embedding_is_the_likelier_one(binary, small_tokenizer, folder, listener, monkeypatch):
    text = "the film is good . the plot is bad , the end is worse .\n" * 3
    model = random_spikegpt(small_tokenizer.get_vocab_size(), 70, 1, 20, binary=binary)
    fit_head(model, encode(small_tokenizer, text))
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").unlink()
    corpus = TextCorpus(text, text, text, Source("made up", "a test"))
    monkeypatch.setattr(qslm.loading.checkpoint, "load_wikitext2", lambda folder, progress: corpus)
    checkpoint = load_checkpoint(folder, progress=listener)
    assert checkpoint.model.config.binary_embedding == binary
    assert any(f"taken as {'binarized' if binary else 'real'}" in message for message in listener.messages)


def test_automatic_embedding_is_binarized_where_there_is_no_text(folder, listener, monkeypatch):
    def missing(folder, progress):
        raise DataError("There is no text.")

    (folder / "config.json").unlink()
    monkeypatch.setattr(qslm.loading.checkpoint, "load_wikitext2", missing)
    assert load_model(folder, progress=listener).config.binary_embedding
    assert listener.messages == ["Embedding: taken as binarized, as there is no calibration text. There is no text."]


def test_automatic_embedding_is_binarized_where_the_tokenizer_is_another(folder, listener, monkeypatch):
    save_file(random_spikegpt(31, 12, 2, 20).state_dict(), folder / "model.safetensors")
    (folder / "config.json").unlink()
    corpus = TextCorpus(*["the film is good"] * 3, Source("made up", "a test"))
    monkeypatch.setattr(qslm.loading.checkpoint, "load_wikitext2", lambda folder, progress: corpus)
    assert load_model(folder, progress=listener).config.binary_embedding
    assert "is none of 31" in listener.messages[0]


def test_calibration_text_comes_from_the_folder_that_is_named(folder, listener, tmp_path, monkeypatch):
    monkeypatch.delenv("QSLM_DATA", raising=False)
    (folder / "config.json").unlink()
    data = tmp_path / "data"
    (data / "wikitext-2").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        (data / "wikitext-2" / f"wiki.{split}.tokens").write_text("the film is good , the end is bad .\n" * 9)
    load_model(folder, data=str(data), progress=listener)
    assert str(data / "wikitext-2") in listener.messages[0] and "nats per token" in listener.messages[1]


# ---- artifacts ---------------------------------------------------------------------------------------------------


@pytest.fixture
def packed(network, small_tokenizer, tmp_path):
    allocation = Allocation.uniform(find_anatomy(network), Format.parse("int4-row"))
    sites = RoundedSites(network.state_dict(), allocation)
    artifact.write(
        tmp_path / "packed", sites, allocation, config=network.config.to_dict(), tokenizer_json=small_tokenizer.to_str()
    )
    return tmp_path / "packed", allocation, sites


def test_artifact_opens_with_its_rounded_weights(packed, network):
    folder, allocation, sites = packed
    for path in (folder, folder / "model.safetensors"):
        checkpoint = load_checkpoint(path)
        found = checkpoint.model.state_dict()
        assert all(torch.equal(found[name], sites[name].dequantize().view(found[name].shape)) for name in sites)
        assert Allocation.from_json(find_anatomy(network), checkpoint.allocation) == allocation
        assert checkpoint.tokenizer is not None
        assert checkpoint.file_bytes == allocation.footprint().file == (folder / "model.safetensors").stat().st_size


def test_run_folder_names_its_artifact(packed, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "study.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has packed no model"):
        load_checkpoint(run)
    packed[0].rename(run / "artifact")
    with pytest.raises(CheckpointError, match=f"run folder of a study.\nGive the packed model in it: {run}/artifact"):
        load_checkpoint(run)


def test_artifact_keeps_the_embedding_that_it_was_packed_with(packed):
    folder, *_ = packed
    assert load_model(folder, binary_embedding=True).config.binary_embedding
    with pytest.raises(CheckpointError, match="packed and measured with binary_embedding true; false is another"):
        load_model(folder, binary_embedding="false")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"architecture": "spikegpt"}'])
def test_a_damaged_config_of_an_artifact_is_said_to_be(packed, content):
    (packed[0] / "config.json").write_bytes(content)
    for ask in (load_checkpoint, read_outline):
        for path in (packed[0], packed[0] / "model.safetensors"):
            with pytest.raises(ArtifactError, match=r"config\.json is damaged"):
                ask(path)


def test_a_packed_model_of_another_network_says_how_its_weights_are_read(tmp_path):
    model = TiedNetwork()
    allocation = Allocation.uniform(find_anatomy(model), Format("integer", 8))
    artifact.write(tmp_path, RoundedSites(model.state_dict(), allocation), allocation, config={"architecture": "Own"})
    for ask in (load_checkpoint, read_outline):
        with pytest.raises(CheckpointError, match="packed model of another network, Own") as caught:
            ask(tmp_path)
        assert f"qslm.artifact.read({str(tmp_path)!r}).state_dict()" in caught.value.remedy
    names = {"qslm": qslm}
    state = eval(f"qslm.artifact.read({str(tmp_path)!r}).state_dict()", names)
    model.load_state_dict(state)


def test_damaged_artifact_is_refused(packed):
    folder, *_ = packed
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match="sha256"):
        load_checkpoint(folder)


def test_changing_an_opened_artifact_leaves_its_file(packed):
    folder, *_ = packed
    before = (folder / "model.safetensors").read_bytes()
    for parameter in load_model(folder).parameters():
        parameter.zero_()
    assert (folder / "model.safetensors").read_bytes() == before


def test_every_failure_is_of_the_error_tree(folder):
    """Truncate each file of a checkpoint folder at some lengths; opening ends in a model or in our error."""
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        content = (folder / name).read_bytes()
        for length in (0, 1, len(content) // 2, len(content) - 1):
            (folder / name).write_bytes(content[:length])
            with pytest.raises(QslmError):
                load_checkpoint(folder)
        (folder / name).write_bytes(content)
