import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qslm.data.tokenizer import (
    PIECE,
    encode,
    encode_text,
    load_tokenizer,
    padding_id,
    parse_tokenizer,
    train_tokenizer,
)
from qslm.errors import DataError

LINES = ["the cat sat on the mat .\n", "the dog sat on the cat .\n", " = Überschrift = \n"] * 4
TOKENIZER = train_tokenizer(LINES, 280)


def test_special_tokens_have_the_ids_of_gpt_neox():
    assert TOKENIZER.token_to_id("<|endoftext|>") == 0
    assert TOKENIZER.token_to_id("<|padding|>") == padding_id(TOKENIZER) == 1
    assert TOKENIZER.get_vocab_size() == 280


def test_training_in_another_process_gives_the_same_tokenizer():
    code = f"from qslm.data.tokenizer import train_tokenizer; print(train_tokenizer({LINES!r}, 280).to_str())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == TOKENIZER.to_str()


@given(st.text())
def test_every_text_decodes_to_itself(text):
    if "<|" not in text:
        assert TOKENIZER.decode(encode(TOKENIZER, text).tolist(), skip_special_tokens=False) == text


def test_ids_are_int64_without_tokens_around():
    ids = encode(TOKENIZER, "the cat")
    assert ids.dtype == torch.int64
    assert [TOKENIZER.id_to_token(token) for token in ids.tolist()] == ["the", "Ġcat"]
    assert encode(TOKENIZER, "").shape == (0,)


@given(st.lists(st.sampled_from(["word", " ", "\n", "  ", "\n\n", "\r\n", "ü", "\t", "!", "'s", " \n = x = \n"])))
def test_pieces_give_the_ids_of_the_whole_text(parts):
    text = "".join(parts)
    whole = TOKENIZER.encode(text, add_special_tokens=False).ids
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qslm.data.tokenizer.PIECE", 3)
        assert encode(TOKENIZER, text).tolist() == whole


def test_pieces_of_real_text_give_the_ids_of_the_whole(data_folder):
    text = (data_folder / "wikitext-2" / "wiki.valid.tokens").read_text(encoding="utf-8")[: 6 * PIECE]
    neox = load_tokenizer(data_folder / "tokenizers" / "20B_tokenizer.json")
    for tokenizer in (TOKENIZER, neox):
        encoded = encode_text(tokenizer, text)
        assert len(encoded.pieces) >= 5
        assert encoded.ids.tolist() == tokenizer.encode(text, add_special_tokens=False).ids
        assert encoded.bytes_until(len(encoded.ids) - 1) == len(text.encode())


def test_bytes_until_counts_the_text_of_the_tokens():
    text = "the cat = Ü\nthe dog\nthe mat\n" * 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qslm.data.tokenizer.PIECE", 10)
        encoded = encode_text(TOKENIZER, text)
    assert len(encoded.pieces) > 3
    for token in range(len(encoded.ids)):
        decoded = TOKENIZER.decode(encoded.ids[: token + 1].tolist(), skip_special_tokens=False)
        if not decoded.endswith("\ufffd"):
            assert encoded.bytes_until(token) == len(decoded.encode())


def test_a_limit_encodes_a_prefix():
    text = "the cat sat\n" * 20_000
    limited = encode_text(TOKENIZER, text, limit=100)
    whole = encode_text(TOKENIZER, text)
    assert 100 <= len(limited.ids) < len(whole.ids)
    assert torch.equal(limited.ids, whole.ids[: len(limited.ids)])


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(DataError, match="256 bytes"):
        train_tokenizer(LINES, 257)


def test_a_tokenizer_is_read_back(tmp_path):
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path / "tokenizer.json").to_str() == TOKENIZER.to_str()


HOSTILE = [
    "",
    "{}",
    "[[[[",
    "null",
    TOKENIZER.to_str()[:1000],
    json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}),
    json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -5}, "merges": []}}),
    json.dumps({**json.loads(TOKENIZER.to_str()), "model": {"type": "Unigram", "vocab": [], "unk_id": 7}}),
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_json_is_refused(text, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"tokenizer\.json is not a tokenizer"):
        load_tokenizer(path)


def test_a_panic_of_the_library_is_an_error_of_ours(monkeypatch):
    class PanicException(BaseException):
        pass

    class Panics:
        @staticmethod
        def from_str(text):
            raise PanicException("index out of bounds")

    monkeypatch.setattr("qslm.data.tokenizer.Tokenizer", Panics)
    with pytest.raises(DataError, match="index out of bounds"):
        parse_tokenizer("{}", "here")


def test_a_tokenizer_that_fails_on_a_text_is_an_error_of_ours():
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}
    tokenizer = parse_tokenizer(json.dumps({"version": "1.0", "added_tokens": [], "model": model}), "here")
    with pytest.raises(DataError, match="cannot encode the text"):
        encode(tokenizer, "b")
    with pytest.raises(DataError, match="cannot encode the text"):
        encode(TOKENIZER, "\ud800")


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(DataError, match="There is no tokenizer"):
        load_tokenizer(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'{"\xe9": 1}')
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer(tmp_path / "latin.json")
