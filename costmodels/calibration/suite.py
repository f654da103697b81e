"""A suite is a table of measurements still to be made: which rows, in which order, for how many seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Cell = str | int | float | bool
Row = dict[str, Cell]

READINGS = ("time_s", "spread", "sm_clock_mhz", "power_w", "repeats")
"""What every timed row ends with: median seconds, interquartile range over median, clock, watts, number of timings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One row to be measured: its configuration and a guess of what measuring it costs, in seconds."""

    key: Mapping[str, Cell]
    seconds: float

    def name(self) -> str:
        """The configuration on one line, for messages."""
        return " ".join(f"{column}={cell}" for column, cell in self.key.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A file of rows: columns that identify a row, columns that are measured, and how to measure one.

    `tasks(small)` imports nothing but the standard library; `measure(bench, key)` returns the measured columns.
    `share` is the part of the whole time this suite is given first; what it leaves goes to the others.
    """

    name: str
    key: tuple[str, ...]
    measured: tuple[str, ...]
    share: float
    tasks: Callable[[bool], list[Task]]
    measure: Callable[[Any, Mapping[str, Cell]], Row]
    needs_ranks: int = 1
    file: str = ""

    @property
    def header(self) -> tuple[str, ...]:
        """Columns of the file, in order; `gpu` second because every row names its device."""
        return (*self.key, "gpu", *self.measured)

    @property
    def csv(self) -> str:
        """Name of the file the rows go to."""
        return f"{self.file or self.name}.csv"


def cell_text(value: Cell) -> str:
    """A cell as it is written, so that what is read back compares equal."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.7g}"
    return str(value)


def row_key(columns: Sequence[str], row: Mapping[str, Cell]) -> tuple[str, ...]:
    """What identifies a row in its file."""
    return tuple(cell_text(row[column]) for column in columns)


def interleave(groups: Iterable[Sequence[Task]]) -> list[Task]:
    """Tasks of several groups, spread evenly: however early the run stops, each group is covered in proportion."""
    placed = [
        ((position + 0.5) / len(group), order, position, task)
        for order, group in enumerate(groups)
        for position, task in enumerate(group)
    ]
    placed.sort(key=lambda item: item[:3])
    return [task for _, _, _, task in placed]


@dataclass(slots=True)
class Pace:
    """Seconds really taken against seconds guessed, so that what is left can be foretold."""

    guessed: float = 0.0
    taken: float = 0.0
    minimum: float = field(default=0.02)

    def add(self, guessed: float, taken: float) -> None:
        """One finished task."""
        self.guessed += guessed
        self.taken += taken

    @property
    def ratio(self) -> float:
        """How many real seconds a guessed second is; 1 until something finished."""
        return self.taken / self.guessed if self.guessed > 0 else 1.0

    def foretell(self, tasks: Iterable[Task]) -> float:
        """Seconds these tasks will take."""
        return sum(task.seconds for task in tasks) * max(self.ratio, self.minimum)
