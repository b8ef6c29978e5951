"""`qslm select`: other budgets for a study that was made, without measuring anything."""

from typing import TYPE_CHECKING, Annotated, cast

import typer

from qslm.cli.budget import print_selection
from qslm.cli.options import Json, MaxDrop, MaxMemory, MaxRise, Mu, Prefer, Run
from qslm.cli.output import print_json

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
    as_json: Json = False,
) -> None:
    """Select again under another budget from what a study has measured; what is not given stays as it was.

    With --mu the best by score is selected, unless --prefer smallest is said.

    Example: [bold]qslm select runs/demo --max-memory 3MB --max-rise 5%[/bold]
    """
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
    if as_json:
        print_json(selection.to_dict())
        return
    print_selection(selection)
    if selection.difference.split == "search":
        print("Measured on the search split only; to pack it and report it, search again with this budget.")
