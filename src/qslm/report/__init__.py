"""The report of a study: one HTML page that opens offline, and the same figures as PNG."""

from qslm.report.sensitivity import write_sensitivity
from qslm.report.write import write_command, write_report

__all__ = ["write_command", "write_report", "write_sensitivity"]
