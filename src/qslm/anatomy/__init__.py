"""The hierarchy of a network: model > block (input, attention i, output) > module > site (QSLM III-A)."""

from qslm.anatomy.find import find_anatomy
from qslm.anatomy.site import INPUT, ITSELF, OUTPUT, Anatomy, Site

__all__ = ["INPUT", "ITSELF", "OUTPUT", "Anatomy", "Site", "find_anatomy"]
