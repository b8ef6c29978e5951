"""Comparing what a ledger belongs to with what a study is, key by key."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qslm.errors import LedgerError

CAUSES = {
    "search windows": "--windows",
    "search sentences": "--windows or the data",
    "report windows": "--report-windows",
    "report sentences": "--report-windows or the data",
    "context": "--context",
    "source": "--file or --data",
    "tokenizer": "--tokenizer",
    "task.name": "--task",
    "machine.threads": "--threads",
    "checkpoint.config.binary_embedding": "--binary-embedding",
    "checkpoint.digest": "other weights",
    "code.digest": "other code of qslm",
}  # what changes a value: an option of the command line, where there is one

DIGEST = re.compile("[0-9a-f]{64}")


def refuse_differences(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise LedgerError, naming every difference, when two identities are not the same.

    Where their `data` differ by `facts` that both tell, these are named in place of the digests; facts alone
    make no difference, as the same text may lie under another name. With another checkpoint its context and tokenizer
    come too, so that then no option is named as the cause of a fact.
    """
    then, now = stored.get("facts", {}), wanted.get("facts", {})
    found = [one for one in _differences(stored, wanted) if not one[0].startswith("facts")]
    if any(place.startswith("data.") for place, _ in found):
        facts = [(name, f"{name} {_short(then[name])} then, {_short(now[name])} now") for name in _changed(then, now)]
        found = [one for one in found if not (facts and one[0].startswith("data."))]
        follows = any(place == "checkpoint.digest" for place, _ in found)
        found = [*found, *(("", told) for _, told in facts)] if follows else [*facts, *found]
    if found:
        raise LedgerError(
            f"{path} belongs to another study: " + "; ".join(map(_with_cause, found)) + ".",
            "Go on with what it was started with, or give a new folder.",
        )


def _changed(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [name for name in sorted(then.keys() & now.keys()) if then[name] != now[name]]


def _differences(stored: Any, wanted: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every place where two JSON values differ, and how: `task.split`, `task.split was "a", is "b"`."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in sorted(stored.keys() | wanted.keys()):
            place = f"{name}.{key}" if name else key
            yield from _differences(stored.get(key, "absent"), wanted.get(key, "absent"), place)
    elif stored != wanted:
        yield name, f"{name} was {_short(stored)}, is {_short(wanted)}"


def _with_cause(difference: tuple[str, str]) -> str:
    place, told = difference
    return f"{told} ({CAUSES[place]})" if place in CAUSES else told


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    if DIGEST.fullmatch(text):
        return f"{text[:12]}..."
    return text if len(text) <= 60 else f"{text[:57]}..."
