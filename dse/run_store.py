"""The store of a run: `run.sqlite`, written ahead while the run goes on, by one driver at a time.

Slices and trials are committed as they come (SQLite, write-ahead log). A disk that is full or locked stops nothing: what
could not be written is remembered, tried again with whatever comes next, and told in `trouble`.

What slices found is in a file of its own, `slices.sqlite`, which goes when the run is whole: rows taken out of a database
leave it as large as it was.
"""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from search.numbering import Numbering
from search.store import Trials, new_rows, taken
from spaces.columns import IntArray

FILE = "run.sqlite"
SLICES = "slices.sqlite"
PATIENCE = 1.0
"""Seconds a transaction waits for a database that is locked."""
_LOCK = "lock"

TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS plan (list TEXT, rank INTEGER, answer TEXT NOT NULL, PRIMARY KEY (list, rank));
CREATE TABLE IF NOT EXISTS removed (axis TEXT, reason TEXT, count INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS chunk (start INTEGER PRIMARY KEY, n INTEGER NOT NULL, cpu_s REAL NOT NULL);
CREATE TABLE IF NOT EXISTS figures (number INTEGER PRIMARY KEY, found BLOB NOT NULL);
"""
_SLICE = "(start INTEGER PRIMARY KEY, n INTEGER NOT NULL, cpu_s REAL NOT NULL, found BLOB NOT NULL)"


class RunLocked(ValueError):
    """A run folder that another driver is writing."""


@final
class RunStore:
    """A run's `search.store.Ledger` and `search.store.TrialStore` on disk; also what the run was asked (`meta`).

    Holds the lock of the folder until `close`; the lock dies with the process. Raises RunLocked when another driver has it,
    OSError when the folder cannot be written.
    """

    def __init__(self, folder: Path, objectives: Sequence[str]) -> None:
        self.folder = folder
        self.trouble = ""
        self._lock: int | None = lock(folder)
        self._database: sqlite3.Connection | None = None
        self._pending: list[tuple[str, list[tuple[Any, ...]]]] = []
        self._slices: dict[int, tuple[int, bytes, float]] = {}  # not written yet
        self._costs = [f'"cost.{name}"' for name in objectives]
        self._known: Numbering | None = None

    # --- what was asked ---

    def meta(self) -> dict[str, str]:
        """What is on record about the run itself. Raises sqlite3.Error."""
        return dict(self._open().execute("SELECT key, value FROM meta").fetchall())

    def note(self, meta: Mapping[str, str]) -> None:
        """Put something on record about the run."""
        self._write("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(meta.items()))

    def holds(self) -> bool:
        """Whether anything that was found is on record, or may be."""
        try:
            return bool(self.slices()) or len(self.trials()) > 0
        except sqlite3.Error:
            return True

    # --- slices ---

    def slices(self) -> Mapping[int, int]:
        """Points of every slice on record, by the ordinal of its first point."""
        rows = self._open().execute("SELECT start, n FROM found.slice").fetchall() if self._attached() else []
        return dict(rows) | {start: n for start, (n, _, _) in self._slices.items()}

    def found(self, start: int) -> tuple[bytes, float]:
        """What was found in the slice that begins there, and the CPU seconds it took."""
        if start in self._slices:
            return self._slices[start][1:]
        asked = "SELECT found, cpu_s FROM found.slice WHERE start = ?"
        row = self._open().execute(asked, (start,)).fetchone() if self._attached() else None
        if row is None:
            raise KeyError(f"no slice on record begins at {start}")
        return bytes(row[0]), float(row[1])

    def keep(self, start: int, n: int, found: bytes, cpu_s: float) -> None:
        """Put a slice on record."""
        self._slices[start] = (n, found, cpu_s)
        self._write("INSERT OR REPLACE INTO found.slice VALUES (?, ?, ?, ?)", [(start, n, cpu_s, found)])

    # --- trials ---

    def tell(self, trials: Trials, figures: bytes = b"") -> None:
        """Put trials on record, with the figures that are to be known of some; of a point told before the first telling stands.

        Rows are appended and the points told are remembered in memory: an index on disk would cost more the larger it is.
        """
        known = self._memory()
        fresh = taken(trials, new_rows(trials.ordinals, self.known(trials.ordinals)))
        first = len(known)
        known.add(fresh.ordinals)
        columns = zip(fresh.ordinals.tolist(), fresh.violation.tolist(), fresh.costs.tolist(), strict=True)
        rows = [
            (first + i, ordinal, violation, fresh.reasons.get(i), *costs)
            for i, (ordinal, violation, costs) in enumerate(columns)
        ]
        if rows:
            if figures:
                self._pending.append(("INSERT OR REPLACE INTO figures VALUES (?, ?)", [(first, figures)]))
            self._write(f"INSERT INTO trial VALUES ({', '.join('?' * len(rows[0]))})", rows)

    def known(self, ordinals: IntArray) -> NDArray[np.bool_]:
        """Which points were told before, shape (n,)."""
        return self._memory().known(ordinals)

    def trials(self) -> Trials:
        """All of them, in the order in which they were told; those not written yet included."""
        rows = self._open().execute("SELECT * FROM trial ORDER BY number").fetchall()
        rows += [row for statement, held in self._pending if "INTO trial " in statement for row in held]
        figures = np.array([[row[2], *row[4:]] for row in rows], np.float64).reshape(len(rows), 1 + len(self._costs))
        return Trials(
            ordinals=np.array([row[1] for row in rows], np.int64),
            costs=figures[:, 1:],
            violation=figures[:, 0],
            reasons={i: row[3] for i, row in enumerate(rows) if row[3] is not None},
            figures=self._figures(),
        )

    def _figures(self) -> tuple[bytes, ...]:
        """What was told of trials beside, in order; what is not written yet included."""
        rows = self._open().execute("SELECT found FROM figures ORDER BY number").fetchall()
        rows += [row[1:] for statement, held in self._pending if "INTO figures " in statement for row in held]
        return tuple(bytes(row[0]) for row in rows)

    def _memory(self) -> Numbering:
        if self._known is None:
            self._known = Numbering(self.trials().ordinals)
        return self._known

    # --- the database ---

    def flush(self) -> None:
        """Write what is left, or say in `trouble` why it cannot be written."""
        if not self._pending:
            return
        try:
            database = self._open()
            if self._slices and not self._attached():
                attach_slices(database, self.folder)
            with database:
                database.execute("BEGIN IMMEDIATE")
                for statement, rows in self._pending:
                    database.executemany(statement, rows)
        except (sqlite3.Error, OSError) as error:
            self.trouble = f"the run could not be written down in {self.folder / FILE}: {error}"
            return
        self.trouble = ""
        self._pending.clear()
        self._slices.clear()

    def close(self) -> None:
        """Write what is left and let go of the folder; once closed, nothing."""
        if self._lock is None:
            return
        self.flush()
        self.rest()
        os.close(self._lock)
        self._lock = None

    def rest(self) -> None:
        """Leave the database to others of this process until something is written or asked again."""
        if self._database is not None:
            self._database.close()
        self._database = None

    def _write(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        self._pending.append((statement, rows))
        self.flush()

    def _attached(self) -> bool:
        """Whether there are slices on record."""
        return any(name == "found" for _, name, _ in self._open().execute("PRAGMA database_list"))

    def _open(self) -> sqlite3.Connection:
        """The database, made if need be."""
        if self._database is None:
            self._database = connect(self.folder)
            costs = "".join(f", {name} REAL" for name in self._costs)
            self._database.execute(
                f"CREATE TABLE IF NOT EXISTS trial (number INTEGER PRIMARY KEY, ordinal INTEGER NOT NULL, violation REAL, "
                f"reason TEXT{costs})"
            )
        return self._database


def connect(folder: Path) -> sqlite3.Connection:
    """The database of a run, with its tables, and with the slices as `found` where there are any. Raises sqlite3.Error."""
    database = sqlite3.connect(folder / FILE, timeout=PATIENCE, isolation_level=None)
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")
        database.executescript(TABLES)
        if (folder / SLICES).exists():
            attach_slices(database, folder)
    except sqlite3.Error:
        database.close()
        raise
    return database


def attach_slices(database: sqlite3.Connection, folder: Path) -> None:
    """Join the slices of a run as `found`, made if need be. Raises sqlite3.Error."""
    database.execute("ATTACH DATABASE ? AS found", (str(folder / SLICES),))
    try:
        database.execute("PRAGMA found.journal_mode=WAL")
        database.execute("PRAGMA found.synchronous=NORMAL")
        database.execute(f"CREATE TABLE IF NOT EXISTS found.slice {_SLICE}")
    except sqlite3.Error:
        database.execute("DETACH DATABASE found")
        raise


def drop_slices(folder: Path) -> None:
    """Remove what slices found: the run is whole. Nobody may have it open. Raises OSError."""
    for end in ("", "-wal", "-shm"):
        (folder / f"{SLICES}{end}").unlink(missing_ok=True)


def lock(folder: Path) -> int:
    """A descriptor that holds the folder's lock until it is closed or the process ends. Raises RunLocked, OSError."""
    import fcntl

    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        who = os.read(descriptor, 200).decode("utf-8", "replace").strip() or "another process"
        os.close(descriptor)
        raise RunLocked(f"{folder} is being written by {who}: wait for it, or end it and resume") from None
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    except OSError:  # a full disk takes no name, but holds the lock all the same
        pass
    return descriptor
