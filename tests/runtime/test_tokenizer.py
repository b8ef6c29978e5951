"""The tokenizer in C: the ids and the text of the package tokenizers, and hostile files refused with a reason."""

import copy
import json
from functools import cache
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Peer
from tokenizers import normalizers, pre_tokenizers

from qslm import _native
from qslm.loading.locating import SHIPPED

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
RUNS = {"type": "Digits", "individual_digits": False}
ADDED = ("<|end|>", "<|end|>!", "  ", "é", "ab")  # of these the last three are looked for last
HARD = [
    *("'s", "'re", "'", "don't", " '", "  ", "\n", "\t", "\u00a0", "\u3000", "12", "½", "٣", "\U00011de0"),
    *("é", "e\u0301", "日本", "\U0001f600", "a1b", "\x00", "ab", *ADDED),
]
TEXT = st.lists(st.sampled_from(HARD) | st.text(max_size=8), max_size=24).map("".join)
CLASSED = [
    chr(point)
    for point in chain(range(0x32400), range(0x32400, 0x110000, 97), range(0xE0000, 0xE0200))
    if not 0xD800 <= point < 0xE000
]


def added_token(content: str, number: int, normalized: bool) -> dict:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": normalized, "special": number < 2}
    return {"id": number, "content": content, **flags}


def tokenizer_json(merges=(), *, dropped=(), cut=(), added=()) -> dict:
    """A tokenizer of the 256 bytes, but those that are dropped, and of merges; `cut` stands before ByteLevel."""
    names = list(dict.fromkeys(chain((name for name in BYTES if name not in dropped), (a + b for a, b in merges))))
    vocabulary = {name: place for place, name in enumerate(names)}
    ids = iter(range(len(names), len(names) + len(added)))
    steps = [*cut, BYTE_LEVEL]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(one, vocabulary.get(one, next(ids) if one not in vocabulary else 0), place >= 2)
            for place, one in enumerate(added)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if cut else BYTE_LEVEL,
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "vocab": vocabulary,
            "merges": list(map(list, merges)),
        },
    }


def both(file: dict) -> tuple[_native.Tokenizer, Peer]:
    text = json.dumps(file)
    return _native.Tokenizer(text.encode()), Peer.from_str(text)


def check_same(ours: _native.Tokenizer, peer: Peer, text: str) -> None:
    ids = ours.encode(text.encode())
    assert ids.dtype == np.uint32
    assert ids.tolist() == peer.encode(text, add_special_tokens=False).ids


@cache
def shipped() -> tuple[_native.Tokenizer, Peer]:
    return both(json.loads((SHIPPED / "spikegpt-mini" / "tokenizer.json").read_text(encoding="utf-8")))


@given(TEXT)
def test_the_ids_of_the_shipped_tokenizer(text):
    check_same(*shipped(), text)


@given(TEXT | st.text(max_size=200), st.booleans())
def test_decoding_gives_the_text_back(text, special):
    ours, peer = shipped()
    ids = ours.encode(text.encode()).tolist()
    assert ours.decode(ids, skip_special_tokens=False) == text.encode()
    assert ours.decode(ids, skip_special_tokens=special).decode() == peer.decode(ids, skip_special_tokens=special)


@given(st.lists(st.integers(0, 4095), max_size=40))
def test_ids_that_are_no_text_decode_alike(ids):
    ours, peer = shipped()
    assert ours.decode(ids).decode(errors="replace") == peer.decode(ids)


def test_the_ids_of_the_whole_test_split(data_folder):
    ours, peer = shipped()
    text = (data_folder / "wikitext-2" / "wiki.test.tokens").read_text(encoding="utf-8")
    check_same(ours, peer, text)


@pytest.mark.parametrize("cut", [(), (DIGITS,), (RUNS,)], ids=["no digits", "single digits", "runs of digits"])
def test_every_code_point_is_of_the_class_that_the_package_gives_it(cut):
    """A code point merges with a letter, a number or a sign before it where they are one word; white space never."""
    ours, peer = both(tokenizer_json([(first, byte) for first in "a1!" for byte in BYTES], cut=cut))
    for start in range(0, len(CLASSED), 1 << 14):
        check_same(ours, peer, "".join(f"a{one}1{one}!{one}" for one in CLASSED[start : start + (1 << 14)]))


@st.composite
def files(draw) -> dict:
    """Tokenizers whose merges build on each other in a drawn order, so that no training has made them consistent."""
    names = ["a", "b", "Ġ", "1", "é", "Ã", "©"]
    merges: dict[tuple[str, str], None] = {}
    for _ in range(draw(st.integers(0, 24))):
        pair = draw(st.tuples(st.sampled_from(names), st.sampled_from(names)))
        if sum(map(len, pair)) <= 8:
            merges[pair] = None
            names.append("".join(pair))
    order = draw(st.permutations(list(merges)))
    dropped = draw(st.sets(st.sampled_from(["c", "!", "Ċ", "Â"])))
    cut, added = draw(st.sampled_from([(), (DIGITS,), (RUNS,)])), draw(st.lists(st.sampled_from(ADDED), unique=True))
    return tokenizer_json(order, dropped=dropped, cut=cut, added=added)


@given(files(), TEXT | st.text("ab 1é", max_size=60))
def test_the_ids_of_any_merges(file, text):
    ours, peer = both(file)
    assert len(ours) == peer.get_vocab_size()
    check_same(ours, peer, text)
    ids = ours.encode(text.encode()).tolist()
    assert ours.decode(ids).decode(errors="replace") == peer.decode(ids)


def test_text_that_is_surely_in_nfc_is_encoded_and_other_text_refused(data_folder):
    path = data_folder / "tokenizers" / "20B_tokenizer.json"
    ours, peer = both(json.loads(path.read_text(encoding="utf-8")))
    for text in ("Hello,  world!    <|endoftext|>\n", "é日本Ελλάς Привет 한국 " * 3, "    \n  x"):
        check_same(ours, peer, text)
    for text in ("e\u0301", "\u1100\u1161", "\u212b", "\u0958"):
        with pytest.raises(ValueError, match="normalizes text to NFC, which may change this one at byte"):
            ours.encode(text.encode())


def test_what_is_said_to_be_in_nfc_is_left_as_it_is_by_the_package():
    """Every code point before and after every kind of neighbour that it could compose with."""
    file = tokenizer_json() | {"normalizer": {"type": "NFC"}}
    ours = _native.Tokenizer(json.dumps(file).encode())
    sure = []
    for one in CLASSED:
        try:
            ours.encode(one.encode())
        except ValueError:
            continue
        sure.append(one)
    assert 100_000 < len(sure) < len(CLASSED) - 1_000
    for start in range(0, len(sure), 1 << 14):
        text = "".join(f"{one}a{one}\uac00{one}{one}" for one in sure[start : start + (1 << 14)])
        assert normalizers.NFC().normalize_str(text) == text


def test_a_word_of_many_thousand_letters():
    ours, peer = shipped()
    random = np.random.default_rng(7)
    check_same(ours, peer, "".join(random.choice(list("etaoin"), 50_000)))
    check_same(ours, peer, "a" * 50_001)


def test_names_are_found():
    ours, peer = shipped()
    for name in ("<|endoftext|>", "<|padding|>", "Ġthe", "a", "the", " the", "nosuchtoken"):
        assert ours.find(name) == peer.token_to_id(name)


# ---- what is refused -------------------------------------------------------------------------------------------------


def changed(path: str, value: object) -> str:
    """A tokenizer with one value replaced; `path` is dotted."""
    file = copy.deepcopy(tokenizer_json([("a", "b")], added=["<|end|>"]))
    *parents, last = path.split(".")
    inside = file
    for name in parents:
        inside = inside[int(name) if name.isdigit() else name]
    inside[int(last) if last.isdigit() else last] = value
    return json.dumps(file)


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("normalizer", {"type": "Lowercase"}, "normalizer is not supported"),
        ("pre_tokenizer", {"type": "Whitespace"}, "pre-tokenizer is not supported: .*Whitespace"),
        ("pre_tokenizer", None, "No object"),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [DIGITS]}, "No ByteLevel pre-tokenizer"),
        (
            "pre_tokenizer",
            {"type": "Sequence", "pretokenizers": [BYTE_LEVEL, DIGITS]},
            "pre-tokenizer is not supported",
        ),
        ("pre_tokenizer.add_prefix_space", True, "pre-tokenizer is not supported"),
        ("pre_tokenizer.use_regex", False, "without use_regex"),
        ("decoder", {"type": "WordPiece"}, "decoder is not supported: WordPiece"),
        ("model.type", "Unigram", "model is not supported"),
        ("model.unk_token", "a", "unk_token is not supported"),
        ("model.dropout", 0.5, "dropout is not supported"),
        ("model.byte_fallback", True, "byte_fallback is not supported"),
        ("model.ignore_merges", True, "ignore_merges is not supported"),
        ("model.end_of_word_suffix", "</w>", "end_of_word_suffix is not supported"),
        ("model.vocab", ["a"], "No object"),
        ("model.vocab.a", 1.5, "not written as an integer"),
        ("model.vocab.a", 5, "Two tokens of one id"),
        ("model.vocab.a", -1, "not below the number of tokens"),
        ("model.vocab.a", 1 << 40, "not below the number of tokens"),
        ("model.merges", {"a": "b"}, "No array"),
        ("model.merges.0", ["a", "nosuch"], "a name that no token has"),
        ("model.merges.0", ["b", "a"], "a name that no token has"),
        ("model.merges.0", "ab", "not of two names"),
        ("model.merges.0", "a b c", "not byte-level"),
        ("model.merges.0", ["a", 1], "No string"),
        ("model.merges.0", [], "not of two names"),
        ("model.merges.0", ["a"], "not of two names"),
        ("model.merges.0", ["a", "b", "c"], "not of two names"),
        ("model.merges", [["a", "b"], ["a", "b"]], "A merge that stands there twice"),
        ("added_tokens.0.lstrip", True, "lstrip is not supported"),
        ("added_tokens.0.single_word", True, "single_word is not supported"),
        ("added_tokens.0.content", "", "without content"),
        ("added_tokens.0.id", 3, "neither known nor the next"),
    ],
)
def test_another_kind_of_file_is_refused_by_name(path, value, reason):
    with pytest.raises(ValueError, match=reason):
        _native.Tokenizer(changed(path, value).encode())


def test_duplicates_are_refused():
    text = json.dumps(tokenizer_json([("a", "b")], added=["<|end|>"]))
    for old, new, reason in (
        ('"a": ', '"b": ', "Two tokens|stands there twice"),
        ('"dropout": null', '"merges": []', "stands there twice"),
        ('"truncation": null', '"model": {"vocab": {}}', "stands there twice"),
    ):
        with pytest.raises(ValueError, match=reason):
            _native.Tokenizer(text.replace(old, new, 1).encode())


def test_a_cut_file_is_refused_wherever_it_is_cut():
    data = json.dumps(tokenizer_json([("a", "b")], added=["<|end|>"])).encode()
    for size in range(len(data)):
        with pytest.raises(ValueError, match=r"JSON|supported"):
            _native.Tokenizer(data[:size])


def test_deep_nesting_is_refused():
    with pytest.raises(ValueError, match="Nesting of more than 64"):
        _native.Tokenizer(changed("post_processor", json.loads("[" * 70 + "]" * 70)).encode())


def test_names_that_crowd_the_hash_table_are_refused():
    """Names of five letters whose FNV-1a ends in the same 12 bits: all want the same place of 4,096."""
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", dtype=np.uint8).astype(np.uint32)
    digests = np.array([0x811C9DC5], dtype=np.uint32)
    for _ in range(5):
        digests = ((digests[:, None] ^ letters) * np.uint32(0x01000193)).ravel()
    crowd = np.flatnonzero((digests ^ digests >> 15) & 0xFFF == 0)[:1200]
    names = ["".join(chr(ord("a") + number // 26**place % 26) for place in range(4, -1, -1)) for number in crowd]
    vocabulary = {name: place for place, name in enumerate(names)}
    with pytest.raises(ValueError, match="crowd the hash table"):
        _native.Tokenizer(changed("model", {"type": "BPE", "vocab": vocabulary, "merges": []}).encode())


@pytest.mark.parametrize("text", [b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"])
def test_bytes_that_are_not_utf8_are_refused(text):
    with pytest.raises(ValueError, match="not UTF-8: byte"):
        shipped()[0].encode(text)


def test_an_id_without_a_token_is_refused():
    with pytest.raises(ValueError, match="no token 4096"):
        shipped()[0].decode([4096])
