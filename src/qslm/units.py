"""Amounts of memory and of time, as people write and read them: MB is 10^6 bytes, MiB is 2^20 bytes."""

import re
from fractions import Fraction

from qslm.errors import BudgetError

MB = 10**6
MiB = 2**20


def spell_duration(seconds: float) -> str:
    """A time in words: `12 s`, `3.4 minutes`, `2.0 hours`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


_UNITS = {
    "b": 1,
    "kb": 10**3, "mb": MB, "gb": 10**9,
    "kib": 2**10, "mib": MiB, "gib": 2**30,
}  # fmt: skip
_AMOUNT = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([a-z]+|%)\s*", re.ASCII | re.IGNORECASE)
_NUMBER = re.compile(r"\s*([0-9]{1,18})\s*", re.ASCII)


def parse_memory(text: str, float_bytes: int) -> int:
    """Read an amount of memory (`120MiB`, `30MB`, `1.5GB`, `1234B`, `14%`) in bytes, rounded down.

    A percentage is a share of `float_bytes`, what all tensors take in float32. Raises BudgetError.
    """
    matched = _AMOUNT.fullmatch(text)
    unit = matched[2].lower() if matched else ""
    if matched is None or (unit != "%" and unit not in _UNITS):
        raise BudgetError(f"{text[:40]!r} is not an amount of memory.", _spelling(text))
    factor = Fraction(float_bytes, 100) if unit == "%" else Fraction(_UNITS[unit])
    amount = int(Fraction(matched[1]) * factor)
    if amount <= 0:
        raise BudgetError(f"A memory budget of {text.strip()} is nothing.", "Give an amount such as 30MB or 14%.")
    return amount


def _spelling(text: str) -> str:
    """How to write an amount; a number alone is told with its two likeliest units."""
    bare = _NUMBER.fullmatch(text)
    if bare is None:
        return "Write a number and a unit: 30MB, 28.5MiB, 1.5GB, 1234B, or a share of the float32 size: 14%."
    number = int(bare[1])
    megabytes = number if number < MB else number / MB
    return f"Write its unit: {number}B, or {megabytes:.15g}MB; or a share of the float32 size: 14%."


def format_bytes(count: int) -> str:
    """Write an amount of bytes in both conventions: `30.00 MB (28.61 MiB)`; below 1 MB in kB and KiB."""
    if count < MB:
        return f"{count / 10**3:.2f} kB ({count / 2**10:.2f} KiB)"
    return f"{count / MB:.2f} MB ({count / MiB:.2f} MiB)"
