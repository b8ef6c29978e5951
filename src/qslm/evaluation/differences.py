"""Comparing what a ledger belongs to with what a study is, key by key."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qslm.errors import LedgerError


def refuse_differences(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise LedgerError, naming every difference, when two identities are not the same."""
    found = list(_differences(stored, wanted))
    if found:
        raise LedgerError(
            f"{path} belongs to another study: " + "; ".join(found) + ".",
            "Go on with what it was started with, or give a new folder.",
        )


def _differences(stored: Any, wanted: Any, name: str = "") -> Iterator[str]:
    """Every place where two JSON values differ, as `task.split was "a", is "b"`."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in sorted(stored.keys() | wanted.keys()):
            place = f"{name}.{key}" if name else key
            yield from _differences(stored.get(key, "absent"), wanted.get(key, "absent"), place)
    elif stored != wanted:
        yield f"{name} was {_short(stored)}, is {_short(wanted)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 60 else f"{text[:57]}..."
