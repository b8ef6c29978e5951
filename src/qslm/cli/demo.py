"""`qslm demo`: a whole study on the network that ships, in a few minutes."""

from pathlib import Path
from typing import Annotated, Any

import typer

from qslm.cli.options import Data, Json, Threads, use_threads
from qslm.cli.progress import Listener
from qslm.cli.search import conduct, finish

CHECKPOINT = "spikegpt-mini"
MAX_RISE = "2%"
WINDOWS = 48  # of 256 tokens: enough for an interval, few enough for five minutes on two cores
EVALUATIONS = 120
PROMPT = "The river"
TOKENS = 30


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="The run folder.")] = Path("runs/demo"),
    data: Data = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Fit the language model that ships into as few bytes as lose 2 % of perplexity, and show what it writes.

    Takes at most five minutes on two cores. A demo that was stopped goes on.

    Example: [bold]qslm demo -o runs/demo[/bold]
    """
    use_threads(threads)
    from qslm.anatomy import find_anatomy
    from qslm.cli.budget import make_budget
    from qslm.loading import load_checkpoint
    from qslm.study import Options
    from qslm.tasks import make_task

    with Listener() as progress:
        loaded = load_checkpoint(CHECKPOINT, progress=progress)
        opening: Any = {"tokenizer": loaded.tokenizer, "config": loaded.config, "data": data}
        task = make_task("wikitext2", windows=WINDOWS, progress=progress, **opening)
        budget = make_budget(find_anatomy(loaded.model), None, None, MAX_RISE)
        before = _sentence(loaded)
        selection = conduct(loaded, task, budget, Options(limit=EVALUATIONS), output, progress)
        after = _sentence(load_checkpoint(selection.artifact))
    finish(selection, as_json)
    if not as_json:
        print(f"\nbefore  {before}\nafter   {after}")


def _sentence(loaded: Any) -> str:
    from qslm.runtime.generate import generate

    text = generate(loaded.model, loaded.tokenizer, PROMPT, tokens=TOKENS, temperature=0.7, seed=1)
    return " ".join(text.split())
