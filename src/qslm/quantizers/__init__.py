"""Methods that round weights into integer formats."""

from qslm.quantizers.apply import CALIBRATED, QUANTIZERS, SCALING, Inputs, Learned, RoundedSites, round_site
from qslm.quantizers.awq import search_exponents
from qslm.quantizers.fold import fold, folds_of
from qslm.quantizers.statistics import InputStatistics

__all__ = [
    "CALIBRATED",
    "QUANTIZERS",
    "SCALING",
    "InputStatistics",
    "Inputs",
    "Learned",
    "RoundedSites",
    "fold",
    "folds_of",
    "round_site",
    "search_exponents",
]
