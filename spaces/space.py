"""Axes and structural rules: legal design points are generated, each choice conditional on the ones before it.

What can be impossible by structure (divisibility, degrees, nesting) is never generated; what it removed is counted per
axis and reason. Capacity (memory, latency, price) is not the space's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spaces.columns import Columns, IntArray

Mask = NDArray[np.bool_]
Rule = Callable[[Mapping[str, NDArray[Any]], NDArray[Any]], Mask]
"""Given the symbols chosen so far, each of shape (n, 1), and this axis's values of shape (1, k): which are legal, (n, k)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Axis:
    """One choice: a name, its values, the symbols each value binds, and the rules that make a value legal.

    `symbols[s]` has shape (k,), one value per level, and always holds the axis's own name; `rules` are (reason, rule).
    """

    name: str
    symbols: Mapping[str, NDArray[Any]]
    rules: tuple[tuple[str, Rule], ...] = ()

    @property
    def values(self) -> NDArray[Any]:
        """Values of the axis's own symbol, shape (k,)."""
        return self.symbols[self.name]


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """Ordered axes. `batches()` yields every legal point exactly once, in a fixed order and in bounded memory."""

    axes: tuple[Axis, ...]
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names behind coded values, by symbol."""

    @property
    def levels(self) -> dict[str, tuple[str, NDArray[Any]]]:
        """Every symbol's axis and values, as `Columns` wants them."""
        return {symbol: (axis.name, values) for axis in self.axes for symbol, values in axis.symbols.items()}

    def columns(self, codes: NDArray[np.int32]) -> Columns:
        """Columns for a code matrix of shape (axes, n)."""
        return Columns(
            n=codes.shape[1], codes={axis.name: codes[i] for i, axis in enumerate(self.axes)}, levels=self.levels
        )

    def batches(self, rows: int = 1 << 17, removed: dict[tuple[str, str], int] | None = None) -> Iterator[Columns]:
        """Yield all legal points in batches of `rows` (the last may be shorter).

        `removed[(axis, reason)]`, when given, is incremented by the partial choices each structural rule ruled out.
        """
        held: list[NDArray[np.int32]] = []
        count = 0
        for codes in _expand(self.axes, np.zeros((0, 1), np.int32), rows, removed):
            held.append(codes)
            count += codes.shape[1]
            if count >= rows:
                matrix = np.concatenate(held, axis=1)
                full = count - count % rows
                for start in range(0, full, rows):
                    yield self.columns(matrix[:, start : start + rows])
                held, count = [matrix[:, full:]], count - full
        if count:
            yield self.columns(np.concatenate(held, axis=1))

    def size(self) -> int:
        """Number of legal points."""
        return sum(codes.shape[1] for codes in _expand(self.axes, np.zeros((0, 1), np.int32), 1 << 17, None))

    def first_choices(self, depth: int) -> NDArray[np.int32]:
        """Legal partial choices of the first `depth` axes, codes of shape (depth, m): how a space is split among workers."""
        return np.concatenate(
            list(_expand(self.axes[:depth], np.zeros((0, 1), np.int32), 1 << 17, None)), axis=1
        )


def _expand(
    axes: tuple[Axis, ...], codes: NDArray[np.int32], rows: int, removed: dict[tuple[str, str], int] | None
) -> Iterator[NDArray[np.int32]]:
    """Depth first, sliced so that no partial batch outgrows `rows`."""
    depth = codes.shape[0]
    if depth == len(axes):
        yield codes
        return
    axis = axes[depth]
    step = max(1, rows // len(axis.values))
    for start in range(0, codes.shape[1], step):
        part = codes[:, start : start + step]
        parent, choice = _legal(axes, axis, part, removed)
        if len(parent):
            grown = np.empty((depth + 1, len(parent)), np.int32)
            np.take(part, parent, axis=1, out=grown[:depth])
            grown[depth] = choice
            yield from _expand(axes, grown, rows, removed)


def _legal(
    axes: tuple[Axis, ...], axis: Axis, codes: NDArray[np.int32], removed: dict[tuple[str, str], int] | None
) -> tuple[IntArray, IntArray]:
    """Row and level of every legal extension of the partial choices."""
    chosen = _Chosen(axes, codes)
    mask = np.ones((codes.shape[1], len(axis.values)), np.bool_)
    for reason, rule in axis.rules:
        allowed = rule(chosen, axis.values[None, :])
        if removed is not None:
            lost = int(np.count_nonzero(mask & ~allowed))
            if lost:
                key = (axis.name, reason)
                removed[key] = removed.get(key, 0) + lost
        mask &= allowed
    parent, choice = np.nonzero(mask)
    return parent, choice


class _Chosen(Mapping[str, NDArray[Any]]):
    """Symbols chosen so far, each (n, 1), gathered only when a rule asks."""

    def __init__(self, axes: tuple[Axis, ...], codes: NDArray[np.int32]) -> None:
        self._codes = codes
        self._where = {
            symbol: (i, values) for i, axis in enumerate(axes[: len(codes)]) for symbol, values in axis.symbols.items()
        }

    def __getitem__(self, symbol: str) -> NDArray[Any]:
        i, values = self._where[symbol]
        return values[self._codes[i]][:, None]

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)
