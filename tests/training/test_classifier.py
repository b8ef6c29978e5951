"""Fine-tuning of a classifier: what it starts from, which batches it sees, and that it goes on where it was killed."""

import json
from dataclasses import replace

import pytest
import torch
from networks.spikegpt import random_spikegpt

from qslm.data.files import LabelledText
from qslm.errors import TrainingError
from qslm.loading.checkpoint import load_model
from qslm.training import ClassifierSettings, train_classifier
from qslm.training.classifier import Sentences, accuracy, batches_of_epoch, classifier_from


@pytest.fixture
def start(small_tokenizer):
    return random_spikegpt(small_tokenizer.get_vocab_size(), 16, 1, 24, context=32)


@pytest.fixture
def settings(tiny_data, tmp_path):
    return ClassifierSettings(tmp_path / "run", tiny_data, epochs=5, batch=16, peak_rate=1e-2, warmup_steps=5)


def test_it_learns_and_a_killed_training_ends_with_the_same_bits(settings, start, small_tokenizer, killed_at, tmp_path):
    folder = train_classifier(settings, start, small_tokenizer, given=("--init", "spikegpt-mini"))
    model = load_model(folder)
    assert model.config.classes == 2 and "head.weight" not in model.state_dict()
    record = json.loads((folder / "training.json").read_text())
    assert record["command"].startswith("qslm train classifier --init spikegpt-mini -o run --epochs 5 --batch 16 ")
    assert record["splits"]["search"] == 40 and record["splits"]["report"] == 20
    history = record["history"]
    assert history["validation"][-1][1] >= 0.9
    other = replace(settings, output=tmp_path / "other")
    killed_at(70, train_classifier, other, start, small_tokenizer)
    resumed = train_classifier(other, start, small_tokenizer)
    assert (resumed / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_training_of_another_start_is_refused(settings, start, small_tokenizer, killed_at):
    killed_at(60, train_classifier, settings, start, small_tokenizer)
    for other in (random_spikegpt(start.config.vocabulary_size, 16, 1, 24, context=32, seed=1), None):
        with pytest.raises(TrainingError, match="start was"):
            train_classifier(settings, other, small_tokenizer)


def test_global_generator_and_the_start_are_not_touched(settings, start, small_tokenizer):
    before, weights = torch.random.get_rng_state(), {name: t.clone() for name, t in start.state_dict().items()}
    train_classifier(replace(settings, epochs=1), start, small_tokenizer)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in start.state_dict().items())


def test_body_is_kept_and_the_head_gives_way(start, small_tokenizer):
    model = classifier_from(start, small_tokenizer, 3, seed=0)
    found, old = model.state_dict(), start.state_dict()
    assert found.keys() ^ old.keys() == {"classifier.weight", "head.weight"}
    assert all(torch.equal(found[name], old[name]) for name in found.keys() & old.keys())
    assert found["classifier.weight"].shape == (3, 16)
    assert all(p.requires_grad for p in model.parameters())
    assert model.config.binary_embedding == start.config.binary_embedding


@pytest.mark.parametrize(("classes", "kept"), [(2, True), (4, False)])
def test_classifier_of_as_many_classes_is_kept(classes, kept, small_tokenizer):
    start = random_spikegpt(small_tokenizer.get_vocab_size(), classes=2)
    model = classifier_from(start, small_tokenizer, classes, seed=0)
    assert torch.equal(model.classifier.weight[:2], start.classifier.weight) == kept


def test_tokenizer_of_more_words_is_refused(small_tokenizer):
    with pytest.raises(TrainingError, match="network 31"):
        classifier_from(random_spikegpt(31), small_tokenizer, 2, seed=0)


@pytest.mark.parametrize("count", [1, 63, 64, 1000])
def test_every_sentence_is_seen_once_an_epoch(count):
    lengths = [(7 * i) % 23 for i in range(count)]
    first, second = (batches_of_epoch(lengths, 8, epoch, seed=0) for epoch in (0, 1))
    for batches in (first, second):
        assert sorted(i for batch in batches for i in batch) == list(range(count))
        assert len(batches) == -(-count // 8) and max(map(len, batches)) <= 8
    assert count == 1 or first != second
    assert batches_of_epoch(lengths, 8, 0, seed=0) == first
    assert count == 1 or batches_of_epoch(lengths, 8, 0, seed=1) != first


def test_padding_does_not_change_the_accuracy(small_tokenizer):
    model = random_spikegpt(small_tokenizer.get_vocab_size(), classes=2)
    texts = ["the film is good", "bad", "", "the plot is bad , the end is worse .", "a"] * 3
    sentences = Sentences.encoded(LabelledText(tuple(texts), (0, 1) * 7 + (0,)), small_tokenizer, 32)
    assert len({accuracy(model, sentences, batch) for batch in (1, 2, 15)}) == 1


def test_sentences_are_cut_and_masked(small_tokenizer):
    sentences = Sentences.encoded(LabelledText(("the film is good", "", "a"), (0, 1, 0)), small_tokenizer, 2)
    ids, mask = sentences.padded([0, 1, 2])
    assert ids.shape == (3, 2) and mask.tolist() == [[True, True], [False, False], [True, False]]
    assert int(ids[1, 0]) == sentences.padding
    ids, mask = sentences.padded([1])
    assert ids.tolist() == [[sentences.padding]] and mask.tolist() == [[False]]
