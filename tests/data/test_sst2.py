import random

import pytest
import torch

from qslm.data import source
from qslm.data.files import LabelledText
from qslm.data.sst2 import load_sst2, outermost_phrases, split_search
from qslm.errors import DataError


def contains(outer, inner):
    return any(outer[start : start + len(inner)] == inner for start in range(len(outer) - len(inner) + 1))


def random_phrases(seed, count=120):
    """Sentences over five words, and constituents cut out of them: many nest, some are equal."""
    rng = random.Random(seed)
    sentences = [tuple(rng.choices("abcde", k=rng.randint(3, 24))) for _ in range(count // 4)]
    cuts = []
    for _ in range(count - len(sentences)):
        sentence = rng.choice(sentences)
        start = rng.randrange(len(sentence))
        cuts.append(sentence[start : rng.randint(start + 1, len(sentence))])
    phrases = sentences + cuts
    rng.shuffle(phrases)
    return phrases


@pytest.mark.parametrize("seed", range(8))
def test_outermost_phrases_are_those_that_a_plain_search_finds(seed):
    phrases = random_phrases(seed)
    expected = [
        index
        for index, phrase in enumerate(phrases)
        if len(phrase) >= 8
        and not any(
            contains(other, phrase) and (other != phrase or place < index)
            for place, other in enumerate(phrases)
            if place != index
        )
    ]
    assert expected
    assert outermost_phrases(phrases) == expected


@pytest.mark.parametrize("seed", range(4))
def test_no_training_phrase_of_four_words_stands_in_a_search_phrase(seed):
    phrases = random_phrases(seed)
    train = LabelledText(tuple(" ".join(phrase) for phrase in phrases), tuple(len(p) % 2 for p in phrases))
    calibrate, search, counts = split_search(train, 5, torch.Generator().manual_seed(seed))
    searched = [tuple(sentence.split()) for sentence in search.sentences]
    removed = [p for p in phrases if len(p) >= 4 and any(contains(outer, p) for outer in searched)]
    assert counts["removed"] == len(removed) >= 5
    assert counts["train"] == len(phrases) == counts["calibrate"] + counts["removed"]
    kept = [tuple(sentence.split()) for sentence in calibrate.sentences]
    assert sorted(kept + removed) == sorted(phrases)
    assert search.labels == tuple(len(phrase) % 2 for phrase in searched)


def test_the_seed_decides_the_search_split():
    train = LabelledText(tuple(f"{index} b c d e f g h" for index in range(50)), (1,) * 50)
    drawn = [split_search(train, 10, torch.Generator().manual_seed(seed))[1] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_too_few_phrases_are_an_error():
    with pytest.raises(DataError, match="has 1 phrases that stand inside no other; 2 are needed"):
        split_search(LabelledText(("a b c d e f g h", "a b"), (0, 1)), 2, torch.Generator().manual_seed(0))


def test_real_splits_are_apart(data_folder, listener):
    corpus = load_sst2(data_folder, listener)
    assert (len(corpus.search), len(corpus.report), corpus.counts["train"]) == (1500, 872, 67_349)
    assert corpus.counts["removed"] + len(corpus.calibrate) == 67_349
    assert min(len(sentence.split()) for sentence in corpus.search.sentences) >= 8
    assert not set(corpus.search.sentences) & set(corpus.calibrate.sentences)
    text = "|".join(f" {sentence} " for sentence in corpus.search.sentences)
    long = [sentence for sentence in corpus.calibrate.sentences[::50] if len(sentence.split()) >= 4]
    assert len(long) > 500
    assert not [sentence for sentence in long if f" {sentence} " in text]
    assert f"search 1,500, removed {corpus.counts['removed']:,}" in listener.messages[-1]


def test_nothing_at_hand_names_the_remedies(monkeypatch):
    monkeypatch.delenv("QSLM_DATA", raising=False)
    monkeypatch.setattr(source, "_hub_is_reachable", lambda: False)
    with pytest.raises(DataError, match=r"(?s)sst2/train\.tsv.*QSLM_DATA.*--task labelled"):
        load_sst2()


def test_a_wrong_label_in_the_folder_is_named(tmp_path):
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "train.tsv").write_text("sentence\tlabel\na\t1\nb\t2\n")
    (tmp_path / "sst2" / "dev.tsv").write_text("sentence\tlabel\na\t1\n")
    with pytest.raises(DataError, match=r"train\.tsv, line 3: the label '2'"):
        load_sst2(tmp_path)
