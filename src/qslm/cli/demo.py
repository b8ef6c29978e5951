"""`qslm demo`: a whole study on the network that ships, in a few minutes."""

from pathlib import Path
from typing import Annotated

import typer

from qslm.cli.options import Data, Json, Threads, use_threads
from qslm.cli.progress import Listener
from qslm.cli.study import finish
from qslm.folders import check_ahead, named


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The run folder.", parser=named, metavar="DIRECTORY")
    ] = Path("runs/demo"),
    data: Data = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Fit the language model that ships into a budget, and show what it writes before and after.

    It takes one to four minutes on two cores, and asks for no data. A demo that was stopped goes on.

    Example: [bold]qslm demo -o runs/demo[/bold]
    """
    check_ahead(output, "study")
    use_threads(threads)
    from qslm.study import demo as run_demo

    with Listener() as progress:
        shown = run_demo(output, data=data, progress=progress)
    finish(shown.selection, as_json, {"before": shown.before, "after": shown.after})
