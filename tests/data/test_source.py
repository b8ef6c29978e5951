import sys

import pytest

from qslm.data import source
from qslm.data.source import Source, data_files, from_hub, read_text
from qslm.errors import DataError


def test_a_source_says_what_it_is():
    assert str(Source("A", "the folder b")) == "A from the folder b"
    assert str(Source("A", "b", in_domain=False, note="outside")) == "A from b (outside)"


def test_an_environment_without_the_file_is_told(tmp_path, monkeypatch, listener):
    monkeypatch.setenv("QSLM_DATA", str(tmp_path))
    assert data_files(None, ["sst2/dev.tsv", "sst2/train.tsv"], listener) is None
    assert listener.messages == [f"QSLM_DATA={tmp_path} has no sst2/dev.tsv: looking elsewhere."]


def test_bytes_that_are_no_text_are_named_by_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\nthr\xffee\n")
    with pytest.raises(DataError, match=r"a\.txt, line 3: byte 11 \(0xff\) is not UTF-8"):
        read_text(tmp_path / "a.txt")


def test_line_ends_and_nul_stay_as_they_are(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\x00\n")
    assert read_text(tmp_path / "a.txt") == "one\r\ntwo\x00\n"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt cannot be read: No such file"):
        read_text(tmp_path / "none.txt")


def test_the_hub_is_not_asked_without_its_client(monkeypatch, listener):
    monkeypatch.setattr(source.importlib.util, "find_spec", lambda name: None)
    assert from_hub(lambda datasets: {"a": [1]}, "A", listener) is None
    assert "not installed" in listener.messages[0]


def test_a_hub_out_of_reach_is_given_up_soon(monkeypatch, listener):
    monkeypatch.setattr(source.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert from_hub(lambda datasets: {"a": [1]}, "A", listener) is None
    assert "out of reach" in listener.messages[0]


def test_a_failure_of_the_hub_is_told(monkeypatch, listener):
    def fail(datasets):
        raise RuntimeError("gated")

    monkeypatch.setattr(source.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(source, "_hub_is_reachable", lambda: True)
    monkeypatch.setitem(sys.modules, "datasets", object())
    assert from_hub(fail, "A", listener) is None
    assert "RuntimeError: gated" in listener.messages[0]
