"""The papers' way of counting memory, shown beside the bytes of the file."""

from qslm.allocation import Allocation


def paper_bytes(allocation: Allocation) -> int:
    """Bytes as QSLM counts them: the weights alone, no scales, zero points or header; vectors in float32.

    Derived: the paper does not say so, but its saving of 68.7 % is that of 10-bit matrices with float32 vectors.
    """
    vectors = sum(site.numel for site in allocation.anatomy.sites if site.is_vector)
    return allocation.footprint().weights + 4 * vectors


def paper_saving(allocation: Allocation) -> float:
    """The share of the float32 bytes that `paper_bytes` saves."""
    return 1 - paper_bytes(allocation) / max(allocation.anatomy.float32_bytes, 1)
