"""What `search` and `demo` share: a study with its report, and its answer in words."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qslm.cli.budget import print_selection
from qslm.cli.output import print_json
from qslm.cli.progress import Listener

if TYPE_CHECKING:
    from qslm.budget import Budget
    from qslm.loading import Checkpoint
    from qslm.search import Options
    from qslm.study import Selection
    from qslm.tasks import Task


def conduct(
    loaded: "Checkpoint",
    task: "Task",
    budget: "Budget",
    options: "Options",
    output: Path,
    progress: Listener,
    *,
    workers: int = 1,
    ray: str | None = None,
) -> "Selection":
    """Search, and write the report, also where nothing was accepted."""
    from qslm.errors import StudyError
    from qslm.study import search as run_search

    try:
        selection = run_search(
            loaded, task, budget=budget, output=output, options=options, progress=progress, workers=workers, ray=ray
        )
    except StudyError:
        _report_of_failure(output, progress)
        raise
    leave_report(output)
    return selection


def leave_report(output: Path) -> None:
    """Write the report of a finished study, and the command that made it. Raises StudyError."""
    from qslm.report import write_command, write_report

    write_command(output, shlex.join(["qslm", *sys.argv[1:]]))
    write_report(output)


def finish(selection: "Selection", as_json: bool, sentences: Mapping[str, str] | None = None) -> None:
    """Print the answer, where it lies, and what the network writes before and after, by name."""
    run = selection.run
    paths = {"model": selection.artifact, "report": run / "report.html", "figures": run / "figures"}
    sentences = sentences or {}
    if as_json:
        shown = {name: str(path) for name, path in paths.items()}
        print_json({**selection.to_dict(), "paths": shown, **sentences})
        return
    print_selection(selection)
    for name, text in [*paths.items(), *sentences.items()]:
        print(f"{name:<8} {text}")


def _report_of_failure(output: Path, progress: Listener) -> None:
    """Where evaluations were made and none was accepted, their report still helps."""
    from qslm.errors import QslmError
    from qslm.report import write_report

    try:
        progress.message(f"report of what was measured: {write_report(output)}")
    except QslmError:
        return  # there is nothing to report yet; the study's own error says why
