"""Methods that round weights into integer formats."""

from qslm.quantizers.apply import CALIBRATED, QUANTIZERS, Inputs, RoundedSites, round_site
from qslm.quantizers.statistics import InputStatistics

__all__ = [
    "CALIBRATED",
    "QUANTIZERS",
    "InputStatistics",
    "Inputs",
    "RoundedSites",
    "round_site",
]
