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
    from qslm.loading.checkpoint import Checkpoint
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
    """Search; where nothing was accepted, the report says what was tried."""
    from qslm.errors import StudyError
    from qslm.study import search as run_search

    try:
        return run_search(
            loaded, task, budget=budget, output=output, options=options, progress=progress, workers=workers, ray=ray
        )
    except StudyError:
        _report_of_failure(output, progress)
        raise


def finish(selection: "Selection", as_json: bool, sentences: Mapping[str, str] | None = None) -> None:
    """Write the report, with the command that made it, and print the answer, also where the report cannot be written.

    Raises what the report raises.
    """
    from qslm.report import write_command, write_report

    try:
        write_command(selection.run, shlex.join(["qslm", *sys.argv[1:]]))
        write_report(selection.run)
    finally:
        _print(selection, as_json, sentences or {})


def _print(selection: "Selection", as_json: bool, sentences: Mapping[str, str]) -> None:
    """The answer, where it lies, and what the network writes before and after, by name."""
    run = selection.run
    places = {"model": selection.artifact, "report": run / "report.html", "figures": run / "figures"}
    paths = {name: path for name, path in places.items() if path.exists()}  # the report may have failed
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
