"""The report of a study: one HTML page that opens offline, and the same figures as PNG."""

from qslm.report.read import COMMAND
from qslm.report.write import write_report

__all__ = ["COMMAND", "write_report"]
