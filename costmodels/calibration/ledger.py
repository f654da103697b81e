"""Rows on disk: append-only CSV files that are their own record of what is done, and a list of what failed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from costmodels.calibration.checks import Limits, refusals
from costmodels.calibration.suite import Cell, Row, Suite, cell_text, row_key

ERRORS = "errors.csv"


class RefusedRowError(ValueError):
    """A row that cannot be true, or is there already; the text names it."""


def mend(path: Path) -> None:
    """Drop a last line that was cut off in the middle of writing."""
    text = path.read_bytes()
    if text and not text.endswith(b"\n"):
        path.write_bytes(text[: text.rfind(b"\n") + 1])


class Ledger:
    """The folder of one machine's measurements. Every row is flushed when it is written; reopening resumes."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder, self.limits = folder, limits
        self._done: dict[str, set[tuple[str, ...]]] = {}

    def done(self, suite: Suite) -> set[tuple[str, ...]]:
        """Keys of this suite's rows that are written, or failed before."""
        if suite.name not in self._done:
            self._done[suite.name] = self._read(suite) | self._failed(suite.name)
        return self._done[suite.name]

    def _read(self, suite: Suite) -> set[tuple[str, ...]]:
        path = self.folder / suite.csv
        if not path.exists():
            return set()
        mend(path)
        with path.open(newline="") as stream:
            rows = csv.DictReader(stream)
            if rows.fieldnames is not None and tuple(rows.fieldnames) != suite.header:
                raise RefusedRowError(f"{path} has other columns than this version writes: use another folder")
            return {row_key(suite.key, row) for row in rows}

    def _failed(self, suite: str) -> set[tuple[str, ...]]:
        path = self.folder / ERRORS
        if not path.exists():
            return set()
        mend(path)
        with path.open(newline="") as stream:
            return {tuple(row[1].split("|")) for row in csv.reader(stream) if row and row[0] == suite}

    def add(self, suite: Suite, row: Mapping[str, Cell]) -> None:
        """Write one row, or raise `RefusedRowError` naming it."""
        key = row_key(suite.key, row)
        name = f"{suite.name} row " + " ".join(f"{c}={v}" for c, v in zip(suite.key, key, strict=True))
        if key in self.done(suite):
            raise RefusedRowError(f"{name}: is there already")
        why = refusals(row, self.limits)
        if why:
            raise RefusedRowError(f"{name}: {'; '.join(why)}")
        self._append(self.folder / suite.csv, suite.header, [cell_text(row.get(c, "")) for c in suite.header])
        self._done[suite.name].add(key)

    def fail(self, suite: Suite, key: Mapping[str, Cell], error: str) -> None:
        """Remember that this row could not be measured, and why; it is not tried again."""
        cells = row_key(suite.key, key)
        message = " ".join(error.split())[:300]
        self._append(self.folder / ERRORS, ("suite", "key", "error"), [suite.name, "|".join(cells), message])
        self.done(suite).add(cells)

    @staticmethod
    def _append(path: Path, header: tuple[str, ...], cells: list[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        line = io.StringIO()
        writer = csv.writer(line, lineterminator="\n")
        if not path.exists() or path.stat().st_size == 0:
            writer.writerow(header)
        writer.writerow(cells)
        with path.open("a", newline="") as stream:
            stream.write(line.getvalue())
            stream.flush()


def read_rows(path: Path) -> list[Row]:
    """All rows of a file as text cells."""
    with path.open(newline="") as stream:
        return [dict(row) for row in csv.DictReader(stream)]
