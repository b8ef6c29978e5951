"""Rows of a long benchmark, kept so that one that was killed goes on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import qslm
from qslm.formats.staging import write_bytes
from qslm.tasks import Losses


class Kept:
    """Rows of this program with their losses, in a file that a kill leaves whole; `given` are its other sources."""

    def __init__(self, folder: Path, name: str, given: Sequence[Path | None] = ()) -> None:
        sources = sorted(Path(qslm.__file__).parent.rglob("*.py")) + sorted(Path(__file__).parent.glob("*.py"))
        told = str([path and str(path.resolve()) for path in given]).encode()
        program = hashlib.sha256(b"".join([told, *(path.read_bytes() for path in sources)])).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"{name}.json"
        found = json.loads(self.file.read_text()) if self.file.is_file() else {}
        fresh: dict[str, Any] = {"program": program, "rows": {}, "seconds": {}, "rotations": {}}
        self.all = found if found.get("program") == program else fresh

    def row(self, key: str) -> dict[str, Any] | None:
        """A row that was measured, or None."""
        found: dict[str, Any] | None = self.all["rows"].get(key, {}).get("row")
        return found

    def losses(self, key: str) -> Losses:
        """The losses of a row."""
        found = self.all["rows"][key]
        return Losses(np.array(found["values"]), np.array(found["weights"]), found["tokens"])

    def keep(self, key: str, row: Mapping[str, Any], losses: Losses) -> None:
        """Write a row down."""
        values, weights = losses.values.tolist(), losses.weights.tolist()
        self.all["rows"][key] = {"row": row, "values": values, "weights": weights, "tokens": losses.tokens}
        self.write()

    def write(self) -> None:
        """Put the file in the place of the one before."""
        write_bytes(self.file, json.dumps(self.all).encode())
