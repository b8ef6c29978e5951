"""Sentences for an encoder: within their frame, cut to its table of positions, in the order of its classes."""

import pytest
from networks.bert import WORDS, sentences, words_tokenizer

from qslm.data.files import LabelledText
from qslm.data.source import Source
from qslm.data.sst2 import LABELS, LabelledCorpus
from qslm.data.tokenizer import Frame, find_frame, parse_tokenizer
from qslm.errors import DataError, TaskError
from qslm.tasks import make_task

CONFIG = {"architecture": "transformers", "vocabulary_size": 40, "context_length": 30, "classes": 2}
CLS, SEP = 2, 3


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "own.tsv"
    path.write_text("".join(f"{text}\t{place % 2}\n" for place, text in enumerate(sentences(60, longest=40))))
    return path


def rows(task):
    """The ids of every sentence of the table, in its order."""
    found = {}
    for batch in task.batches("all"):
        for unit, ids, mask in zip(batch.units.tolist(), batch.ids, batch.mask, strict=True):
            found[unit] = ids[mask].tolist()
    return [found[unit] for unit in sorted(found)]


def test_sentences_are_what_the_tokenizer_makes_of_them_and_keep_their_frame_when_cut(table, listener):
    tokenizer = words_tokenizer()
    task = make_task("labelled", tokenizer=tokenizer, config=CONFIG, file=table, progress=listener)
    tokenizer.enable_truncation(30)
    assert rows(task) == [tokenizer.encode(text).ids for text in sentences(60, longest=40)]
    long = sum(len(text.split()) > 28 for text in sentences(60, longest=40))
    assert long > 5 and f"{long} of 60 sentences are longer than 30 tokens and lose their end." in listener.messages[-1]
    assert max(batch.ids.shape[1] for batch in task.batches("all")) == 30  # padding stays within the table too


def test_our_own_classifiers_see_bare_sentences(table):
    config = {**CONFIG, "architecture": "spikegpt"}
    found = rows(make_task("labelled", tokenizer=words_tokenizer(), config=config, file=table))
    assert not {CLS, SEP} & {one for ids in found for one in ids}


def test_a_frame_is_found_and_put_around():
    assert find_frame(words_tokenizer()) == Frame((CLS,), (SEP,))
    assert Frame((CLS,), (SEP,)).around([5, 6, 7], 4) == [CLS, 5, 6, SEP]
    assert Frame((CLS,), (SEP,)).around([], 4) == [CLS, SEP]
    with pytest.raises(DataError, match="puts no tokens around a sentence"):
        find_frame(words_tokenizer(frame=False))


def test_a_tokenizer_that_cuts_and_pads_does_not():
    tokenizer = words_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=50)
    assert len(parse_tokenizer(tokenizer.to_str(), "here").encode(" ".join(WORDS)).ids) == len(WORDS) + 2


@pytest.mark.parametrize(
    ("context", "told"),
    [(31, "longer than the model's table of 30 positions"), (2, "A context of 2 tokens holds no sentence")],
)
def test_a_context_that_does_not_fit_is_refused(context, told, table):
    with pytest.raises(TaskError, match=told):
        make_task("labelled", tokenizer=words_tokenizer(), config=CONFIG, file=table, context=context)


@pytest.fixture
def sst2(monkeypatch):
    texts = LabelledText(sentences(20), (0, 1) * 10)
    corpus = LabelledCorpus(texts, texts, texts, LABELS, {}, Source("SST-2", "here"))
    monkeypatch.setattr("qslm.tasks.named.load_sst2", lambda *_: corpus)


@pytest.mark.parametrize("labels", [["NEGATIVE", "POSITIVE"], ["LABEL_0", "LABEL_1"], ["0", "1"], ["bad", "good"]])
def test_classes_in_the_order_of_sst2_are_taken(labels, sst2):
    assert make_task("sst2", tokenizer=words_tokenizer(), config={**CONFIG, "labels": labels}).batches("report")


@pytest.mark.parametrize("labels", [["POSITIVE", "NEGATIVE"], ["pos", "neg"], ["LABEL_1", "LABEL_0"]])
def test_classes_in_another_order_are_refused(labels, sst2):
    with pytest.raises(TaskError, match=f"class 0 is '{labels[0]}', that of the task is 'negative'"):
        make_task("sst2", tokenizer=words_tokenizer(), config={**CONFIG, "labels": labels})


def test_another_number_of_classes_is_refused(sst2, table):
    config = {**CONFIG, "classes": 3, "labels": ["negative", "positive", "neither"]}
    with pytest.raises(TaskError, match="SST-2 has 2 classes, but the model has 3"):
        make_task("sst2", tokenizer=words_tokenizer(), config=config)
    table.write_text("the film\t2\n")
    with pytest.raises(DataError, match="the label '2' is not one of the model's classes, 0 to 1"):
        make_task("labelled", tokenizer=words_tokenizer(), config=CONFIG, file=table)
    with pytest.raises(TaskError, match="needs a language model, but the model is a classifier of 2 classes"):
        make_task("wikitext2", tokenizer=words_tokenizer(), config=CONFIG)
