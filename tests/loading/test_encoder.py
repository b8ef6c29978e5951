"""Sequence classifiers of transformers as checkpoints: folders, packed models, and what is refused."""

import json

import pytest
import torch
from networks.bert import TYPES, save, tiny_bert, words_tokenizer

from qslm import artifact
from qslm.allocation import Allocation
from qslm.anatomy import INPUT, OUTPUT
from qslm.anatomy.find import find_anatomy
from qslm.errors import CheckpointError, TaskError
from qslm.formats import Format
from qslm.loading.checkpoint import load_checkpoint
from qslm.loading.outline import read_outline
from qslm.models.encoder import EncoderLogits
from qslm.quantizers import RoundedSites
from qslm.runtime.sampling import generate

pytest.importorskip("transformers", reason="needs pip install 'qslm[llama]'")

IDS = torch.arange(40).reshape(2, 20)
MASK = torch.arange(20) < torch.tensor([[20], [13]])


def answers(model):
    with torch.inference_mode():
        return model(IDS, MASK)


@pytest.mark.parametrize("kind", TYPES)
def test_a_folder_is_opened_with_its_logits_classes_and_tokenizer(kind, tmp_path):
    network = save(tmp_path, kind, labels=("NEGATIVE", "POSITIVE", "NEITHER"))
    opened, outline = load_checkpoint(tmp_path), read_outline(tmp_path)
    with torch.inference_mode():
        expected = network(input_ids=IDS, attention_mask=MASK.long()).logits
    assert torch.equal(answers(opened.model), expected) and expected.shape == (2, 3)
    assert opened.config["classes"] == outline.classes == 3
    assert opened.config["labels"] == ["NEGATIVE", "POSITIVE", "NEITHER"]
    assert opened.config["context_length"] == 32 and opened.tokenizer.get_vocab_size() == 19
    assert outline.anatomy == find_anatomy(opened.model) and outline.vocabulary_size == 40
    assert opened.file_bytes == outline.file_bytes == (tmp_path / "model.safetensors").stat().st_size


@pytest.mark.parametrize("kind", TYPES)
def test_its_layers_are_the_attention_blocks(kind):
    anatomy = find_anatomy(EncoderLogits(tiny_bert(kind)))
    assert anatomy.blocks == (INPUT, "attention 0", "attention 1", OUTPUT)
    assert all("embeddings" in site.name for site in anatomy.sites_of(INPUT))
    assert sum(not site.is_vector for site in anatomy.sites_of("attention 1")) == 6
    assert sum(not site.is_vector for site in anatomy.sites_of(OUTPUT)) == 2  # pooler and classifier


@pytest.mark.parametrize("kind", TYPES)
def test_a_packed_network_is_opened_with_its_rounded_weights(kind, tmp_path):
    model = EncoderLogits(tiny_bert(kind))
    anatomy = find_anatomy(model)
    allocation = Allocation.uniform(anatomy, Format.parse("int4-row"))
    artifact.write(tmp_path, RoundedSites(model.state_dict(), allocation), allocation, config=model.config.to_dict())
    opened = load_checkpoint(tmp_path)
    before = answers(model)
    model.load_state_dict(artifact.read(tmp_path).state_dict())
    assert torch.equal(answers(opened.model), answers(model)) and not torch.equal(answers(model), before)
    assert read_outline(tmp_path).anatomy == anatomy and read_outline(tmp_path).classes == 2
    assert opened.config["labels"] == ["LABEL_0", "LABEL_1"]


def test_padding_does_not_change_a_sentence():
    model = EncoderLogits(tiny_bert())
    with torch.inference_mode():
        torch.testing.assert_close(model(IDS, MASK)[1:], model(IDS[1:, :13]), atol=1e-6, rtol=0)
        assert not torch.allclose(model(IDS)[1], model(IDS, MASK)[1])


def test_a_table_of_positions_that_a_file_of_old_carries_is_passed_over(tmp_path):
    from safetensors.torch import load_file, save_file

    save(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(
        load_file(path) | {"bert.embeddings.position_ids": torch.arange(32)[None]}, path, metadata={"format": "pt"}
    )
    assert load_checkpoint(tmp_path).model.config.classes == 2


@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM"])
def test_a_bert_without_a_classifier_is_refused_by_name(name, tmp_path):
    import transformers

    config = tiny_bert().config
    getattr(transformers, name)(config).save_pretrained(tmp_path)
    for read in (load_checkpoint, read_outline):
        with pytest.raises(CheckpointError, match=f"holds a {name}, which has not the head of a sequence classifier"):
            read(tmp_path)
    path = tmp_path / "config.json"  # one that does not say what it is
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": None}))
    with pytest.raises(CheckpointError, match="not those that its config describes: missing"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"id2label": {"0": "ONLY"}}, "names 1 classes"),
        ({"id2label": {"0": "A", "2": "C"}}, "does not name its classes from 0 on"),
        ({"problem_type": "multi_label_classification"}, "the largest logit is not the answer"),
        ({"is_decoder": True}, "describes a decoder"),
        ({"type_vocab_size": -1}, "unusable|cannot be opened"),
        ({"intermediate_size": 1 << 40}, "unusable|cannot be opened"),
    ],
)
def test_a_config_that_is_not_usable_is_refused(change, told, tmp_path):
    save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for read in (load_checkpoint, read_outline):
        with pytest.raises(CheckpointError, match=told):
            read(tmp_path)


def test_what_it_cannot_do_is_refused():
    model = EncoderLogits(tiny_bert(positions=16))
    with pytest.raises(TaskError, match="Sentences of 20 tokens are longer than the network's table of 16 positions"):
        model(IDS)
    with pytest.raises(TaskError, match="A classifier does not generate text"):
        generate(model, words_tokenizer(), "the film")
