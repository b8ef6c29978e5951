"""The hierarchy of a network: model > block (input, attention i, output) > module > site (QSLM III-A).

What this file exports loads without PyTorch; `anatomy.find` finds the hierarchy of a network.
"""

from qslm.anatomy.site import INPUT, ITSELF, OUTPUT, Anatomy, Site

__all__ = ["INPUT", "ITSELF", "OUTPUT", "Anatomy", "Site"]
