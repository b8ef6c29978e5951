"""`qslm data`: which data is found, and how much."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qslm.cli.options import Data, Json
from qslm.cli.output import print_json, print_table
from qslm.cli.progress import Listener

Finding = dict[str, Any]


def data(data: Data = None, as_json: Json = False) -> None:
    """Show where the published data is found, and how much there is.

    Sources in this order: --data or QSLM_DATA, the Hugging Face Hub, and for language modelling a text corpus
    from the package registry.

    Example: [bold]qslm data --data ~/data[/bold]
    """
    with Listener() as progress:
        found = [_found("wikitext2", _wikitext2, data, progress), _found("sst2", _sst2, data, progress)]
    if as_json:
        print_json(found)
        return
    rows = [[f["task"], f["source"], *(f"{f[s]:,}" if s in f else "-" for s in SPLITS), f["unit"]] for f in found]
    print_table(["task", "source", *SPLITS, "counted in"], rows, texts=2)


SPLITS = ("calibrate", "search", "report")


def _found(task: str, read: Callable[..., Finding], folder: Path | None, progress: Listener) -> Finding:
    """What `read` finds, or why it finds nothing; a folder that the user named must be right."""
    from qslm.errors import DataError

    try:
        return {"task": task, **read(folder, progress)}
    except DataError as error:
        if folder is not None:
            raise
        progress.message(f"{task}: {error}")
        return {"task": task, "source": "not found", "unit": "-"}


def _wikitext2(folder: Path | None, progress: Listener) -> Finding:
    from qslm.data.wikitext2 import load_wikitext2, word_tokens

    corpus = load_wikitext2(folder, progress)
    words = {split: word_tokens(getattr(corpus, split)) for split in SPLITS}
    return {"source": str(corpus.source), "in_domain": corpus.source.in_domain, **words, "unit": "words"}


def _sst2(folder: Path | None, progress: Listener) -> Finding:
    from qslm.data.sst2 import load_sst2

    corpus = load_sst2(folder, progress)
    sentences = {split: len(getattr(corpus, split)) for split in SPLITS}
    return {"source": str(corpus.source), "in_domain": corpus.source.in_domain, **sentences, "unit": "sentences"}
