"""Numbers in JSON, which has neither infinity nor NaN."""

from collections.abc import Mapping
from math import isfinite
from typing import Any


def finite(value: Any) -> Any:
    """A nest of mappings, lists and tuples with null in place of every number that is not finite."""
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not isfinite(value):
        return None
    return value
