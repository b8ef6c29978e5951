"""`qslm select`: other budgets for a study that was made, without measuring anything."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from qslm.cli.budget import print_selection
from qslm.cli.options import Json, MaxDrop, MaxMemory, MaxRise, Mu, Prefer, Run
from qslm.cli.output import print_json
from qslm.folders import check_ahead, named

if TYPE_CHECKING:
    from qslm.budget import Decision as Rule
    from qslm.budget import Preference


def select(
    run: Run,
    max_memory: MaxMemory = None,
    max_drop: MaxDrop = None,
    max_rise: MaxRise = None,
    decision: Annotated[
        str | None, typer.Option("--decision", help="bound or point; the study's by default.", show_default=False)
    ] = None,
    prefer: Prefer = None,
    mu: Mu = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Pack the answer into this folder.",
            show_default=False,
            parser=named,
            metavar="DIRECTORY",
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", help="What to pack, where the study's checkpoint has moved.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Select again under another budget from what a study has measured; what is not given stays as it was.

    With --mu the best by score is selected, unless --prefer smallest is said: the highest for accuracy, the lowest
    for perplexity. The run folder stays as it is; with -o the answer is packed, into a folder of its own.

    Example: [bold]qslm select runs/demo --max-memory 3MB --max-rise 5%[/bold]
    """
    if output is not None:
        check_ahead(output, "packing")
    from qslm.study import pack
    from qslm.study import select as select_again

    selection = select_again(
        run,
        max_memory=max_memory,
        max_drop=max_drop,
        max_rise=max_rise,
        prefer=cast("Preference | None", prefer),
        mu=mu,
        decision=cast("Rule | None", decision),
    )
    if output is not None:
        pack(selection, output, checkpoint)
    if as_json:
        print_json(selection.to_dict() | ({} if output is None else {"paths": {"model": str(output)}}))
        return
    print_selection(selection)
    if output is not None:
        print(f"model    {output}")
    elif selection.packed is None:
        print(f"Not packed yet: {shlex.join(['qslm', *sys.argv[1:]])} -o FOLDER")
    if selection.difference.split == "search":
        print(
            "Measured on the search split only. A search in this folder under this budget goes on from what is "
            "measured, reports, and replaces the packed model; its answer may be another one."
        )
