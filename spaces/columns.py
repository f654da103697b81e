"""Symbols bound to scalars or to columns: the one way a cost model reads anything.

A `Problem` binds symbols to scalars; `Columns` binds symbols to one value per design point. A symbol is bound in exactly
one of the two, and no model may assume which: `Bindings` answers for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
CodeArray: TypeAlias = NDArray[np.integer[Any]]
Scalar: TypeAlias = float | int
Value: TypeAlias = Any  # a Python number or an array of shape (n,)


class UnboundSymbol(KeyError):
    """A cost model read a symbol that neither the problem nor the columns bind."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else "unbound symbol"


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """n design points as a struct of dictionary-encoded arrays.

    `codes[axis]` has shape (n,) and indexes the levels of every symbol that belongs to the axis: choosing a device binds
    `device.memory_bandwidth`, `device.power`, … at once. `levels[symbol]` is (axis, values of shape (k,)).
    """

    n: int
    codes: Mapping[str, CodeArray]
    levels: Mapping[str, tuple[str, NDArray[Any]]]

    @classmethod
    def from_values(cls, values: Mapping[str, NDArray[Any]]) -> Columns:
        """Columns from plain arrays of shape (n,), one axis per symbol; an empty mapping is a batch of none."""
        codes: dict[str, CodeArray] = {}
        levels: dict[str, tuple[str, NDArray[Any]]] = {}
        sizes = {np.shape(array)[0] for array in values.values()}
        if len(sizes) > 1:
            raise ValueError(f"columns of unequal length {sorted(sizes)}: every symbol needs one value per design point")
        for symbol, array in values.items():
            if np.shape(array) == (1,):
                codes[symbol], levels[symbol] = np.zeros(1, np.int32), (symbol, np.array(array))
                continue
            distinct, inverse = np.unique(np.asarray(array), return_inverse=True)
            codes[symbol] = inverse.astype(np.int32)
            levels[symbol] = (symbol, distinct)
        return cls(n=sizes.pop() if sizes else 0, codes=codes, levels=levels)

    def __len__(self) -> int:
        return self.n

    def __contains__(self, symbol: object) -> bool:
        return symbol in self.levels

    def __getitem__(self, symbol: str) -> NDArray[Any]:
        """Values of a symbol, shape (n,); read-only where all are one."""
        axis, values = self.levels[symbol]
        if len(values) == 1:
            return values[:] if self.n == 1 else np.broadcast_to(values, (self.n,))
        return values.take(self.codes[axis])

    def take(self, rows: NDArray[Any] | slice) -> Columns:
        """The given rows (indices, mask or slice), same levels."""
        codes = {axis: code[rows] for axis, code in self.codes.items()}
        n = len(next(iter(codes.values()))) if codes else len(np.zeros(self.n)[rows])
        return Columns(n=n, codes=codes, levels=self.levels)

    def row(self, index: int) -> dict[str, Any]:
        """One design point as {symbol: Python value}."""
        return {symbol: values[self.codes[axis][index]].item() for symbol, (axis, values) in self.levels.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Bindings:
    """Symbols of a problem and of columns under one roof; `at[symbol]` is a scalar or a read-only array of shape (n,)."""

    scalars: Mapping[str, Any]
    columns: Columns
    _gathered: dict[str, NDArray[Any]] = field(default_factory=dict, repr=False)

    def __getitem__(self, symbol: str) -> Value:
        if symbol in self._gathered:
            return self._gathered[symbol]
        if symbol in self.columns.levels:
            found = self.columns[symbol]
            found.flags.writeable = False  # the next reader gets the same array
            self._gathered[symbol] = found
            return found
        try:
            return self.scalars[symbol]
        except KeyError:
            raise UnboundSymbol(f"'{symbol}' is bound neither by the problem nor by the design points") from None

    def __contains__(self, symbol: object) -> bool:
        return symbol in self.columns.levels or symbol in self.scalars

    def get(self, symbol: str, default: Value) -> Value:
        """The bound value, or the default."""
        return self[symbol] if symbol in self else default

    @property
    def n(self) -> int:
        """Number of design points."""
        return self.columns.n


def distinct(columns: Columns, reads: Iterable[str]) -> tuple[Columns, IntArray]:
    """The distinct combinations of the symbols in `reads`, and for every row the combination it has.

    Returns (combinations, index of shape (n,)): `f(columns) == f(combinations)[index]` for any f that reads only `reads`.
    Combinations are keyed by a mixed-radix code of the axes' level numbers, so the cost is linear in n.
    """
    wanted = {columns.levels[symbol][0] for symbol in reads if symbol in columns.levels}
    levels = {symbol: entry for symbol, entry in columns.levels.items() if entry[0] in wanted}
    sizes = {axis: len(values) for axis, values in levels.values()}
    axes = [axis for axis in columns.codes if axis in wanted]  # generated points vary most in the last
    if not axes or columns.n == 0:
        rows = min(columns.n, 1)
        none = {axis: columns.codes[axis][:rows] for axis in axes}
        return Columns(n=rows, codes=none, levels=levels), np.zeros(columns.n, np.int64)
    pieces = [slice(start, start + _PIECE) for start in range(0, columns.n, _PIECE)]
    found = [_distinct({axis: columns.codes[axis][rows] for axis in axes}, sizes) for rows in pieces]
    first = np.concatenate([own + rows.start for (own, _), rows in zip(found, pieces, strict=True)])
    if len(pieces) == 1:
        index = found[0][1]
    else:
        own, place = _distinct({axis: columns.codes[axis][first] for axis in axes}, sizes)
        ends = np.cumsum([0, *(len(rows) for rows, _ in found)])
        index = np.concatenate([place[start:end][each] for (_, each), start, end in zip(found, ends, ends[1:], strict=False)])
        first = first[own]
    return Columns(n=len(first), codes={axis: columns.codes[axis][first] for axis in axes}, levels=levels), index


_PIECE = 1 << 15
"""Rows whose codes stay in the cache of a core."""


def _distinct(codes: Mapping[str, CodeArray], sizes: Mapping[str, int]) -> tuple[IntArray, IntArray]:
    """A row of each distinct combination of codes, in their order, and the combination of each of the n > 0 rows."""
    n = len(next(iter(codes.values())))
    changed = np.zeros(n, np.bool_)  # generated points come in runs
    changed[0] = True
    varied = []  # and most axes do not vary within a piece
    for axis, code in codes.items():
        if sizes[axis] > 1:
            steps = code[1:] != code[:-1]
            if steps.any():
                varied.append(axis)
                changed[1:] |= steps
    starts = np.flatnonzero(changed)
    every = 2 * len(starts) > n  # runs so short that rows are as good
    if every:
        starts = np.arange(n)
    key: CodeArray = np.zeros(len(starts), np.int32)
    span = 1
    for axis in varied:
        if span * sizes[axis] > _room(len(starts)):  # squeeze what there is before it outgrows a table of flags
            keys, key = numbered(key, span)
            span = len(keys)
        code = codes[axis] if every else codes[axis][starts]
        key = key * sizes[axis] + code if span > 1 else code.astype(np.int32)
        span *= sizes[axis]
    keys, run = numbered(key, span)
    first = np.empty(len(keys), np.int64)
    first[run[::-1]] = starts[::-1]
    return first, run if every else np.repeat(run, np.diff(np.append(starts, n)))


def _room(n: int) -> int:
    """Possible codes up to which a flag for each beats sorting n of them."""
    return max(4 * n, 1 << 16)


def numbered(code: CodeArray, span: int) -> tuple[IntArray, IntArray]:
    """Sorted distinct codes below `span`, and the place of every code among them."""
    if span > _room(len(code)):
        keys, index = np.unique(code, return_inverse=True)
        return keys.astype(np.int64), index
    code = code.astype(np.intp)
    seen = np.zeros(span, np.bool_)
    seen[code] = True
    keys = np.flatnonzero(seen)
    place = np.empty(span, np.int64)
    place[keys] = np.arange(len(keys))
    return keys, place.take(code)
