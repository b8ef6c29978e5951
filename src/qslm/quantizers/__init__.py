"""Methods that round weights into integer formats."""

from qslm.quantizers.apply import QUANTIZERS, Quantizer, RoundedSites, round_site

__all__ = ["QUANTIZERS", "Quantizer", "RoundedSites", "round_site"]
