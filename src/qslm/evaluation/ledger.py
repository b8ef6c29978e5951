"""The durable store of every evaluation of a study, and of what was expected before, in SQLite.

What is put is on the disk before it returns (rollback journal, synchronous=EXTRA), so a study that is killed at
any moment finds what it had measured. One process at a time writes to a ledger; another one is refused.
"""

import errno
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from qslm.errors import LedgerError
from qslm.evaluation.differences import refuse_differences
from qslm.evaluation.evaluation import Evaluation
from qslm.locking import lock_folder
from qslm.tasks.task import Losses, Units

APPLICATION_ID = 0x51534C4D  # "QSLM"
SCHEMA_VERSION = 4
_SCHEMA = """
CREATE TABLE identity (text TEXT NOT NULL);
CREATE TABLE estimates (key TEXT PRIMARY KEY, text TEXT NOT NULL, digest TEXT NOT NULL);
CREATE TABLE evaluations (
    number INTEGER PRIMARY KEY, key TEXT NOT NULL, split TEXT NOT NULL, allocation TEXT NOT NULL,
    tier TEXT NOT NULL, note TEXT NOT NULL, metric TEXT NOT NULL, value REAL, low REAL, high REAL,
    losses BLOB NOT NULL, weights BLOB NOT NULL, tokens INTEGER NOT NULL, file_bytes INTEGER NOT NULL,
    seconds REAL NOT NULL, details TEXT NOT NULL, units BLOB, work INTEGER NOT NULL,
    digest TEXT NOT NULL, UNIQUE (key, split)
);
"""
TABLES = {"identity", "estimates", "evaluations"}
_COLUMNS = (
    "key, split, allocation, tier, note, metric, value, low, high, losses, weights, tokens, file_bytes, "
    "seconds, details, units, work, digest"
)


@dataclass(frozen=True, eq=False)
class Row:
    """One evaluation as the ledger holds it; `number` counts from 1 in the order in which they were made."""

    number: int
    key: str
    split: str
    allocation: str
    tier: str
    note: str
    evaluation: Evaluation


class Ledger:
    """All evaluations of one study; made by `Ledger.open` or, to look only, by `Ledger.read`."""

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: int | None) -> None:
        self.path = path
        self._connection = connection
        self._lock = lock

    @classmethod
    def open(cls, path: Path, identity: Mapping[str, Any]) -> "Ledger":
        """Open the ledger of a study for writing, or start it.

        `identity` says what the evaluations depend on (checkpoint, task, data, versions, threads, ...), as
        JSON values. Raises LedgerError when the file belongs to another identity, naming every difference,
        when another process has it open, when it is damaged, or when it cannot be written.
        """
        with _explained(path):
            lock = _locked(path)
            try:
                ledger = cls(path, sqlite3.connect(path, isolation_level=None), lock)
            except BaseException:
                os.close(lock)
                raise
            try:
                ledger._prepare(dict(identity))
            except BaseException:
                ledger.close()
                raise
        return ledger

    @classmethod
    def read(cls, path: Path) -> "Ledger":
        """Open a ledger to look at it, also while a study writes to it. Raises LedgerError."""
        with _explained(path):
            if not path.is_file():
                raise LedgerError(f"There is no ledger {path}.", "Give the run folder of a study.")
            # A writer that was killed may have left a journal: only a connection that may write rolls it back.
            mode = "rw" if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK) else "ro"
            uri = f"{path.resolve().as_uri()}?mode={mode}"
            ledger = cls(path, sqlite3.connect(uri, uri=True, isolation_level=None), None)
            try:
                ledger._check()
            except BaseException:
                ledger.close()
                raise
        return ledger

    def close(self) -> None:
        """Close the file and let other processes have it."""
        self._connection.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def identity(self) -> dict[str, Any]:
        """What the evaluations in it depend on."""
        with _explained(self.path):
            found = self._connection.execute("SELECT text FROM identity").fetchall()
        try:
            value = json.loads(found[0][0]) if len(found) == 1 else None
        except (TypeError, ValueError):
            value = None
        if not isinstance(value, dict):
            raise _damaged(self.path, "it does not say what it belongs to")
        return value

    def get(self, key: str, split: str) -> Evaluation | None:
        """The evaluation of the allocation with this key on a split, if there is one."""
        query = f"SELECT number, {_COLUMNS} FROM evaluations WHERE key = ? AND split = ?"
        with _explained(self.path):
            found = self._connection.execute(query, (key, split)).fetchone()
        return None if found is None else self._row(found).evaluation

    def put(self, key: str, split: str, allocation: str, tier: str, note: str, evaluation: Evaluation) -> None:
        """Store an evaluation; it is on the disk when this returns. `key` is the digest of `allocation`.

        It takes the place, and the number, of a partial one of the same allocation and split. Raises LedgerError
        where there is a complete one, and for a partial one that does not say which units it is of.
        """
        told = (
            *(key, split, allocation, tier, note),
            *(evaluation.metric, evaluation.value, evaluation.low, evaluation.high),
            *(_blob(evaluation.losses.values), _blob(evaluation.losses.weights), evaluation.losses.tokens),
            *(evaluation.footprint_file, evaluation.seconds, json.dumps(evaluation.details, sort_keys=True)),
            *(None if evaluation.complete else self._units(evaluation.losses), evaluation.work),
        )
        values = (*told, _digest(told))
        marks = ", ".join("?" * len(values))
        replacing = f"UPDATE evaluations SET ({_COLUMNS}) = ({marks}) WHERE key = ? AND split = ? AND units NOT NULL"
        with _explained(self.path):
            if self._connection.execute(replacing, (*values, key, split)).rowcount == 0:
                self._connection.execute(f"INSERT INTO evaluations ({_COLUMNS}) VALUES ({marks})", values)

    def estimate(self, key: str) -> str | None:
        """The text that `put_estimate` has kept under a key, if there is one."""
        with _explained(self.path):
            found = self._connection.execute("SELECT text, digest FROM estimates WHERE key = ?", (key,)).fetchone()
        if found is None:
            return None
        text, digest = found
        if _digest((key, text)) != digest:
            raise _damaged(self.path, "an estimate is not as it was written")
        return str(text)

    def put_estimate(self, key: str, text: str) -> None:
        """Store what is expected before anything is measured; `key` says what the text depends on."""
        with _explained(self.path):
            self._connection.execute("INSERT INTO estimates VALUES (?, ?, ?)", (key, text, _digest((key, text))))

    def rows(self, split: str) -> list[Row]:
        """All evaluations on a split, in the order in which they were made."""
        query = f"SELECT number, {_COLUMNS} FROM evaluations WHERE split = ? ORDER BY number"
        with _explained(self.path):
            found = self._connection.execute(query, (split,)).fetchall()
        return [self._row(values) for values in found]

    def _units(self, losses: Losses) -> bytes:
        if losses.units is None:
            raise LedgerError("A partial evaluation does not say which units it is of.", "Give its losses `units`.")
        return np.ascontiguousarray(losses.units, dtype="<i8").tobytes()

    def _prepare(self, identity: dict[str, Any]) -> None:
        self._connection.execute("PRAGMA journal_mode = DELETE")
        self._connection.execute("PRAGMA synchronous = EXTRA")
        if self._connection.execute("PRAGMA page_count").fetchone()[0] == 0:
            self._create(identity)
        self._check()
        refuse_differences(self.path, self.identity, json.loads(json.dumps(identity)))

    def _create(self, identity: dict[str, Any]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA.split(";"):
            self._connection.execute(statement)
        self._connection.execute("INSERT INTO identity VALUES (?)", (json.dumps(identity, sort_keys=True),))
        self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._connection.execute("COMMIT")

    def _check(self) -> None:
        application = self._connection.execute("PRAGMA application_id").fetchone()[0]
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION_ID:
            raise LedgerError(f"{self.path} is not a ledger of qslm.", "Give the run folder of a study.")
        if version != SCHEMA_VERSION:
            raise LedgerError(
                f"{self.path} has ledger version {version}, this is version {SCHEMA_VERSION}.",
                "Start the study in a new folder.",
            )
        found = {name for (name,) in self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if missing := sorted(TABLES - found):
            raise _damaged(self.path, f"it has no table {missing[0]}")
        problem = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise _damaged(self.path, str(problem))

    def _row(self, values: tuple[Any, ...]) -> Row:
        try:
            return _parsed(values)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise _damaged(self.path, f"evaluation {values[0]}: {error}") from None


def _parsed(values: tuple[Any, ...]) -> Row:
    number, key, split, allocation, tier, note, metric, value, low, high, *rest = values
    losses, weights, tokens, file_bytes, seconds, details, units, work, digest = rest
    if hashlib.sha256(allocation.encode()).hexdigest() != key:
        raise ValueError("the allocation does not have the digest it is stored under")
    measured = Losses(_numbers(losses), _numbers(weights), int(tokens), None if units is None else _places(units))
    if len(measured.values) != len(measured.weights):
        raise ValueError(f"{len(measured.values)} losses but {len(measured.weights)} weights")
    if measured.units is not None and len(measured.units) != len(measured.values):
        raise ValueError(f"{len(measured.values)} losses but {len(measured.units)} places of units")
    if int(work) < 0:
        raise ValueError(f"its work is {work}")
    if _digest(values[1:-1]) != digest:
        raise ValueError("it is not as it was written")
    figures = {str(name): float(figure) for name, figure in json.loads(details).items()}
    value, low, high = (float("nan") if number is None else float(number) for number in (value, low, high))
    counted = (int(file_bytes), float(seconds), figures, int(work), units is None)
    found = Evaluation(str(metric), value, low, high, measured, *counted)
    return Row(int(number), str(key), str(split), allocation, str(tier), str(note), found)


def _digest(values: tuple[Any, ...]) -> str:
    """The sha256 of a row without its number; NaN is stored as NULL."""
    digest = hashlib.sha256()
    for value in values:
        content = value if isinstance(value, bytes) else str(None if value != value else value).encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def _blob(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values, dtype="<f8").tobytes()


def _numbers(blob: Any) -> np.ndarray:
    if not isinstance(blob, bytes) or len(blob) % 8:
        raise ValueError("its losses are not a row of 8-byte numbers")
    return np.frombuffer(blob, dtype="<f8").astype(np.float64)


def _places(blob: Any) -> Units:
    if not isinstance(blob, bytes) or len(blob) % 8:
        raise ValueError("its units are not a row of 8-byte numbers")
    places = np.frombuffer(blob, dtype="<i8").astype(np.int64)
    if (places < 0).any() or (places[1:] <= places[:-1]).any():
        raise ValueError("the places of its units do not rise from 0")
    return places


def _locked(path: Path) -> int:
    problem = f"Another study is running in {path.parent}."
    return lock_folder(path.parent, LedgerError(problem, "Wait for its end, or give another folder."))


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system raise into a LedgerError."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise LedgerError(
            f"{path} already has this evaluation: {error}.", "Start the study in a new folder."
        ) from error
    except sqlite3.OperationalError as error:
        if "decode" in str(error):
            raise _damaged(path, "a text in it is not UTF-8") from None
        raise LedgerError(
            f"{path} cannot be used: {error}.", "Check the free space and the permissions of the folder."
        ) from error
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error
    except OSError as error:
        raise LedgerError(
            f"{path} cannot be used: {error.strerror or error}.",
            "Free some space."
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "Choose a folder that can be written.",
        ) from error


def _damaged(path: Path, reason: str) -> LedgerError:
    return LedgerError(f"{path} is damaged: {reason}.", "Remove it to start the study anew, or restore a copy.")
