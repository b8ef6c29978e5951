"""Writing a report: the page and its pictures into the run folder."""

from pathlib import Path

from qslm.errors import ArtifactError, StudyError
from qslm.formats.staging import write_bytes
from qslm.report.page import render
from qslm.report.pictures import draw_pictures
from qslm.report.read import COMMAND, read_run

PAGE, PICTURES = "report.html", "figures"


def write_report(run: Path | str) -> Path:
    """Write `report.html` and `figures/*.png` from the files of a run folder; return the page's path.

    Raises StudyError or LedgerError when the folder holds no study, or cannot be written.
    """
    run = Path(run)
    record = read_run(run)
    text = render(record).encode()
    try:
        draw_pictures(record, run / PICTURES)
        write_bytes(run / PAGE, text)
    except ArtifactError as error:
        raise StudyError(error.problem, error.remedy) from error
    except OSError as error:
        problem = f"Cannot write the report into {run}: {error.strerror or error}."
        raise StudyError(problem, "Free some space, or make the folder writable.") from error
    return run / PAGE


def write_command(run: Path | str, command: str) -> None:
    """Leave the command of a study in its run folder, for the report to show. Raises StudyError."""
    try:
        write_bytes(Path(run) / COMMAND, f"{command}\n".encode("utf-8", "backslashreplace"))
    except ArtifactError as error:
        raise StudyError(error.problem, error.remedy) from error
