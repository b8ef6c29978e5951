"""Writing a report: the page and its pictures into the run folder."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qslm.errors import ArtifactError, StudyError
from qslm.formats.staging import commit, stage, write_bytes
from qslm.report import energy_figures, pictures
from qslm.report.page import render
from qslm.report.read import COMMAND, read_run
from qslm.report.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE, PICTURES = "report.html", "figures"
SOMETIMES = ("bits.png", "energy.png", "energy-blocks.png")  # of a selection alone, or of an account


def write_report(run: Path | str) -> Path:
    """Write `report.html` and `figures/*.png` from the files of a run folder; return the page's path.

    Raises StudyError or LedgerError when the folder holds no study, or cannot be written.
    """
    run = Path(run)
    record = read_run(run)
    text = render(record).encode()
    try:
        _draw(record, run / PICTURES)
        write_bytes(run / PAGE, text)
    except ArtifactError as error:
        raise StudyError(error.problem, error.remedy) from error
    except OSError as error:
        problem = f"Cannot write the report into {run}: {error.strerror or error}."
        raise StudyError(problem, "Free some space, or make the folder writable.") from error
    return run / PAGE


def _draw(record: Record, folder: Path) -> None:
    """Write the pictures that there are, and remove what an earlier report drew and this one does not."""
    drawn: dict[str, Figure] = {"pareto.png": pictures.pareto(record), "tiers.png": pictures.tiers(record)}
    if record.grid is not None:
        drawn["bits.png"] = pictures.bits(record.grid)
    if record.energy is not None:
        drawn["energy.png"] = energy_figures.draw_candidates(record, record.energy)
        drawn["energy-blocks.png"] = energy_figures.draw_by_block(record.energy)
    folder.mkdir(parents=True, exist_ok=True)
    commit([stage(folder / name, partial(pictures.save_figure, figure)) for name, figure in drawn.items()])
    for name in SOMETIMES:
        if name not in drawn:
            (folder / name).unlink(missing_ok=True)


def write_command(run: Path | str, command: str) -> None:
    """Leave the command of a study in its run folder, for the report to show. Raises StudyError."""
    try:
        write_bytes(Path(run) / COMMAND, f"{command}\n".encode("utf-8", "backslashreplace"))
    except ArtifactError as error:
        raise StudyError(error.problem, error.remedy) from error
