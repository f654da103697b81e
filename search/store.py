"""Where a search writes down what it found, so that it can go on after anything: slices of an exact search, trials of a
sampled one.

Both are written ahead: what is told is down before the search goes on. A store never raises for a disk that is full or
locked; it remembers what it could not write, tries again, and says so in `trouble`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, final, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from search.numbering import Numbering
from spaces.columns import FloatArray, IntArray


@runtime_checkable
class Ledger(Protocol):
    """Slices of a space that were searched, or other consecutive pieces of a search's work, and what was found in each."""

    def slices(self) -> Mapping[int, int]:
        """Points of every slice on record, by the ordinal of its first point."""
        ...

    def found(self, start: int) -> tuple[bytes, float]:
        """What was found in the slice that begins there (`search.packing`), and the CPU seconds it took."""
        ...

    def keep(self, start: int, n: int, found: bytes, cpu_s: float) -> None:
        """Put a slice on record."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trials:
    """n evaluated points, in the order in which they were told.

    `ordinals` (n,) are their places in the order of the space, `costs` (n, objectives; less is better) and `violation`
    (n,; the greatest, at most 0 is feasible) are infinite where the model failed, for the reason in `reasons[row]`.
    `figures` is what else was told of some of them, in order (`search.packing`).
    """

    ordinals: IntArray
    costs: FloatArray
    violation: FloatArray
    reasons: Mapping[int, str] = field(default_factory=dict)
    figures: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.ordinals)
        if self.costs.ndim != 2 or len(self.costs) != n or self.violation.shape != (n,):
            raise ValueError(f"{n} trials need costs (n, objectives) and violations (n,), not {self.costs.shape}")

    def __len__(self) -> int:
        return len(self.ordinals)

    @classmethod
    def none(cls, objectives: int) -> Trials:
        """No trials."""
        return cls(ordinals=np.empty(0, np.int64), costs=np.empty((0, objectives)), violation=np.empty(0))


@runtime_checkable
class TrialStore(Protocol):
    """The trials of a sampled search, and the memory that keeps a point from being asked twice.

    What a trial costs to tell and to look up does not depend on how many there are.
    """

    def tell(self, trials: Trials, figures: bytes = b"") -> None:
        """Put trials on record; of a point told before the first telling stands.

        `figures` (`search.packing`) is what else is to be known of some of them; none where it is empty.
        """
        ...

    def known(self, ordinals: IntArray) -> NDArray[np.bool_]:
        """Which points were told before, shape (n,)."""
        ...

    def trials(self) -> Trials:
        """All of them, in the order in which they were told."""
        ...


@final
class Shelf:
    """The pieces of one stage in a ledger that two stages of a search share: the later one's are written below nought."""

    def __init__(self, ledger: Ledger, *, later: bool) -> None:
        self._ledger = ledger
        self._later = later

    def slices(self) -> Mapping[int, int]:
        """Points of every slice of this stage, by its first ordinal."""
        return {self._place(start): n for start, n in self._ledger.slices().items() if (start < 0) == self._later}

    def found(self, start: int) -> tuple[bytes, float]:
        """What was found in a slice, and its CPU seconds."""
        return self._ledger.found(self._place(start))

    def keep(self, start: int, n: int, found: bytes, cpu_s: float) -> None:
        """Put a slice on record."""
        self._ledger.keep(self._place(start), n, found, cpu_s)

    def _place(self, start: int) -> int:
        return -1 - start if self._later else start


@final
class Remembered:
    """A ledger and a trial store in memory: for searches that nobody will resume."""

    trouble = ""

    def __init__(self, objectives: int = 1) -> None:
        self._slices: dict[int, tuple[int, bytes, float]] = {}
        self._trials: list[Trials] = [Trials.none(objectives)]
        self._figures: list[bytes] = []
        self._known = Numbering()

    def slices(self) -> Mapping[int, int]:
        """Points of every slice, by its first ordinal."""
        return {start: n for start, (n, _, _) in self._slices.items()}

    def found(self, start: int) -> tuple[bytes, float]:
        """What was found in a slice, and its CPU seconds."""
        return self._slices[start][1:]

    def keep(self, start: int, n: int, found: bytes, cpu_s: float) -> None:
        """Remember a slice."""
        self._slices[start] = (n, found, cpu_s)

    def known(self, ordinals: IntArray) -> NDArray[np.bool_]:
        """Which points were told before, shape (n,)."""
        return self._known.known(ordinals)

    def tell(self, trials: Trials, figures: bytes = b"") -> None:
        """Remember trials."""
        self._figures += [figures] if figures else []
        fresh = new_rows(trials.ordinals, self.known(trials.ordinals))
        self._trials.append(taken(trials, fresh))
        self._known.add(trials.ordinals[fresh])

    def trials(self) -> Trials:
        """All of them."""
        if len(self._trials) > 1:
            self._trials = [joined(self._trials)]
        return replace(self._trials[0], figures=tuple(self._figures))


def new_rows(ordinals: IntArray, known: NDArray[np.bool_]) -> IntArray:
    """The first row of each point that is not known, in order."""
    _, first = np.unique(ordinals, return_index=True)
    rows = np.sort(first)
    return np.asarray(rows[~known[rows]], np.int64)


def taken(trials: Trials, rows: IntArray) -> Trials:
    """Some rows of trials."""
    reasons = {i: trials.reasons[row] for i, row in enumerate(rows.tolist()) if row in trials.reasons}
    return Trials(
        ordinals=trials.ordinals[rows], costs=trials.costs[rows], violation=trials.violation[rows], reasons=reasons
    )


def joined(parts: list[Trials]) -> Trials:
    """All the rows of at least one part, in order."""
    starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
    return Trials(
        ordinals=np.concatenate([part.ordinals for part in parts]),
        costs=np.concatenate([part.costs for part in parts]),
        violation=np.concatenate([part.violation for part in parts]),
        reasons={
            start + row: why for start, part in zip(starts, parts, strict=False) for row, why in part.reasons.items()
        },
    )
