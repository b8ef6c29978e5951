"""Writing a report: the page and its pictures into the run folder."""

from pathlib import Path
from typing import IO

from qslm.errors import ArtifactError, StudyError
from qslm.formats.staging import commit, stage
from qslm.report.page import render
from qslm.report.pictures import draw_pictures
from qslm.report.read import read_run

PAGE, PICTURES = "report.html", "figures"


def write_report(run: Path | str) -> Path:
    """Write `report.html` and `figures/*.png` from the files of a run folder; return the page's path.

    Raises StudyError or LedgerError when the folder holds no study, or cannot be written.
    """
    run = Path(run)
    record = read_run(run)
    text = render(record).encode()

    def fill(file: IO[bytes]) -> None:
        file.write(text)

    try:
        draw_pictures(record, run / PICTURES)
        commit([stage(run / PAGE, fill)])
    except ArtifactError as error:
        raise StudyError(error.problem, error.remedy) from error
    except OSError as error:
        problem = f"cannot write the report into {run}: {error.strerror or error}"
        raise StudyError(problem, "Free some space, or make the folder writable.") from error
    return run / PAGE
