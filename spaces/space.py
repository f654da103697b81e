"""Axes and structural rules: legal design points are generated, each choice conditional on the ones before it.

What is impossible by structure (divisibility, degrees, nesting) is never generated; what it removed is counted per axis
and reason. Capacity (memory, latency, price) is not the space's business.

How it stays fast: a rule is asked once per distinct combination of the symbols it reads, not once per point. Counting
(`size`, `removed`) carries such combinations with their multiplicity from axis to axis and never lists a point;
generation lists the choices of the first axes and joins each to the remembered completions of the other axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spaces.columns import CodeArray, Columns, IntArray, Value

Rule = Callable[[Mapping[str, Value], Value], Value]
"""Given the symbols chosen so far, each of shape (n, 1), and this axis's values of shape (1, k): which are legal.

The answer is boolean and broadcasts to (n, k). A rule is a pure function of the symbols it looks up, and looks
up the same symbols whatever their values are.
"""

_KEY_SPAN = 1 << 62  # mixed-radix keys stay below this, so that they fit a signed 64-bit integer
_CELLS = 1 << 22  # elements of one legality mask
_BLOCK = 1 << 12  # prefixes joined to their completions at a time
_COMPLETIONS = 1 << 9  # completions of a prefix, on average
_REMEMBERED = 1 << 22  # completions kept from one block to the next


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Axis:
    """One choice: a name, its values, the symbols each value binds, and the rules that make a value legal.

    `symbols[s]` has shape (k,), one value per level, and always holds the axis's own name; `rules` are (reason, rule),
    and a value is removed for the first reason that rules it out. Raises ValueError when symbols disagree in length, when
    the own symbol is missing, or when two levels are equal in every symbol (they would mean the same choice).
    """

    name: str
    symbols: Mapping[str, NDArray[Any]]
    rules: tuple[tuple[str, Rule], ...] = ()

    def __post_init__(self) -> None:
        if self.name not in self.symbols:
            raise ValueError(f"axis '{self.name}' does not bind its own symbol; it binds {', '.join(self.symbols)}")
        shapes = {symbol: np.shape(values) for symbol, values in self.symbols.items()}
        if len(set(shapes.values())) != 1 or len(shapes[self.name]) != 1:
            raise ValueError(f"axis '{self.name}': every symbol needs one value per level, got shapes {shapes}")
        if len(set(self.values.tolist())) != len(self.values):
            raise ValueError(f"axis '{self.name}' has a level twice: {self.values.tolist()}")

    @property
    def values(self) -> NDArray[Any]:
        """Values of the axis's own symbol, shape (k,)."""
        return self.symbols[self.name]


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """Ordered axes. `batches()` yields every legal point exactly once, in a fixed order and in bounded memory.

    The order is lexicographic in the level numbers of the axes and does not depend on the batch size. Raises ValueError
    when two axes bind one symbol, and KeyError when a rule reads a symbol that no earlier axis binds.
    """

    axes: tuple[Axis, ...]
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names behind coded values, by symbol."""

    def __post_init__(self) -> None:
        owner: dict[str, str] = {}
        for axis in self.axes:
            for symbol in axis.symbols:
                if symbol in owner:
                    raise ValueError(f"axes '{owner[symbol]}' and '{axis.name}' both bind '{symbol}'")
                owner[symbol] = axis.name

    @property
    def levels(self) -> dict[str, tuple[str, NDArray[Any]]]:
        """Every symbol's axis and values, as `Columns` wants them."""
        return {symbol: (axis.name, values) for axis in self.axes for symbol, values in axis.symbols.items()}

    def columns(self, codes: CodeArray) -> Columns:
        """Columns for a code matrix of shape (axes, n)."""
        return Columns(
            n=codes.shape[1], codes={axis.name: codes[i] for i, axis in enumerate(self.axes)}, levels=self.levels
        )

    def batches(self, rows: int = 1 << 17, removed: dict[tuple[str, str], int] | None = None) -> Iterator[Columns]:
        """Yield all legal points in batches of `rows` (the last may be shorter).

        `removed[(axis, reason)]`, when given, is incremented by what `removed()` counts before the first batch comes.
        """
        if rows < 1:
            raise ValueError(f"a batch needs at least one row, got {rows}")
        walked = walk(self.axes)
        if removed is not None:
            for key, lost in walked.removed.items():
                removed[key] = removed.get(key, 0) + lost
        levels = self.levels
        for codes in _blocks(_joined(self.axes, walked.split(), rows), rows):
            rows_of = {axis.name: codes[i] for i, axis in enumerate(self.axes)}
            yield Columns(n=codes.shape[1], codes=rows_of, levels=levels)

    def size(self) -> int:
        """Number of legal points, counted without listing them."""
        return walk(self.axes).partial[-1]

    def removed(self) -> dict[tuple[str, str], int]:
        """Partial choices each structural rule ruled out, by (axis, reason).

        A partial choice is a legal choice of the axes before, extended by one value of this axis; where several rules
        object, the first is named.
        """
        return dict(walk(self.axes).removed)


def split_of(space: Space) -> int:
    """The depth at which choices of the first axes are best joined to the completions of the others."""
    return walk(space.axes).split()


@dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """One axis for every distinct context (the levels chosen so far that rules from there on read), of which there are m.

    Edge e leads from the context `parent` by `level` to the context `child` of the next axis, each (e,), in the order of these.
    """

    contexts: int
    parent: IntArray
    level: IntArray
    child: IntArray


@dataclass(frozen=True, slots=True)
class Walk:
    """What a walk through a space found: edges by axis, legal partial choices by depth, and the removals."""

    edges: tuple[Edges, ...]
    partial: tuple[int, ...]
    removed: dict[tuple[str, str], int]

    def split(self) -> int:
        """Depth at which listing prefixes and joining remembered completions costs least, in rows handled.

        Depths where a prefix has many completions on average are left out: a block of them would outgrow memory.
        """
        total = self.partial[-1]
        costs: list[float] = []
        for prefixes, edges in zip(self.partial[:-1], self.edges, strict=True):
            each = total / max(prefixes, 1)
            costs.append(prefixes + edges.contexts * each if each <= _COMPLETIONS else np.inf)
        return len(costs) - 1 - int(np.argmin(costs[::-1])) if costs else 0


@lru_cache(maxsize=8)  # a search asks for the size, the removals, the batches and the numbers of one space
def walk(axes: tuple[Axis, ...]) -> Walk:
    """Walk a space axis by axis, carrying each distinct context with the number of choices that lead to it."""
    needs = contexts_read(axes)
    most = max((len(axis.values) for axis in axes), default=1)
    states: CodeArray = np.zeros((0, 1), np.int32)
    times: NDArray[Any] = np.ones(1, np.int64)
    partial, removed, edges = [1], dict[tuple[str, str], int](), list[Edges]()
    for depth in range(len(axes)):
        chosen = dict(zip(needs[depth], states, strict=True))
        parent, level = legal_extensions(axes, depth, chosen, len(times), removed, times)
        grown = {i: codes[parent] for i, codes in chosen.items()} | {depth: level}
        kept = needs[depth + 1]
        matrix = np.array([grown[i] for i in kept], np.int32).reshape(len(kept), len(parent))
        keys, _ = combination_keys(matrix, [len(axes[i].values) for i in kept])
        distinct, first, child = np.unique(keys, return_index=True, return_inverse=True)
        edges.append(Edges(len(times), parent, level, child))
        each = times[parent]
        if most * each.sum(dtype=np.float64) >= _KEY_SPAN:  # beyond 64 bits
            each = each.astype(np.object_)
        states, times = matrix[:, first], np.zeros(len(distinct), each.dtype)
        np.add.at(times, child, each)
        partial.append(int(times.sum()) if len(times) else 0)
    return Walk(tuple(edges), tuple(partial), removed)


def combination_keys(codes: CodeArray, sizes: list[int]) -> tuple[IntArray, bool]:
    """One integer per column of `codes`, equal exactly where the columns are; and whether it means the same elsewhere.

    A mixed-radix number; where that would overflow, what there is so far is renumbered, and then the keys of two calls
    cannot be compared.
    """
    keys = np.zeros(codes.shape[1], np.int64)
    span, absolute = 1, True
    for row, size in zip(codes, sizes, strict=True):
        if span * size >= _KEY_SPAN:
            distinct, keys = np.unique(keys, return_inverse=True)
            span, absolute = len(distinct), False
        keys = keys * size + row
        span *= max(size, 1)
    return keys, absolute


def legal_extensions(
    axes: tuple[Axis, ...],
    depth: int,
    chosen: Mapping[int, CodeArray],
    n: int,
    removed: dict[tuple[str, str], int] | None = None,
    times: NDArray[Any] | None = None,
) -> tuple[IntArray, IntArray]:
    """Row and level of every legal extension of n partial choices by one axis.

    `chosen` maps the number of an axis to level numbers of shape (n,). `removed`, when given, counts what each rule took
    away, every row `times` over.
    """
    axis = axes[depth]
    few, lost_alone, rules = _by_values_alone(axes, depth)
    if removed is not None and times is not None and len(times):
        for reason, count in lost_alone:
            removed[axis.name, reason] = removed.get((axis.name, reason), 0) + count * int(times.sum())
    values = axis.values[None, few]
    step = max(1, _CELLS // max(len(few), 1))
    parents: list[IntArray] = []
    choices: list[IntArray] = []
    for start in range(0, n, step):
        part = {i: codes[start : start + step] for i, codes in chosen.items()}
        mask = np.ones((min(step, n - start), len(few)), np.bool_)
        for reason, rule in rules:
            allowed = rule(_Chosen(axes, part), values)
            if removed is not None and times is not None:
                lost = (mask & ~allowed).sum(axis=1)
                key = (axis.name, reason)
                if lost.any():
                    removed[key] = removed.get(key, 0) + int((lost * times[start : start + step]).sum())
            mask &= allowed
        parent, choice = np.nonzero(mask)
        parents.append(parent + start)
        choices.append(few[choice])
    return (np.concatenate(parents), np.concatenate(choices)) if parents else (np.empty(0, np.int64),) * 2


@lru_cache(maxsize=256)
def _by_values_alone(
    axes: tuple[Axis, ...], depth: int
) -> tuple[IntArray, tuple[tuple[str, int], ...], tuple[tuple[str, Rule], ...]]:
    """What the first rules of an axis say that read no earlier choice: the levels that they leave, how many each took by
    reason, and the rules that come after them."""
    axis = axes[depth]
    few = np.arange(len(axis.values))
    lost: list[tuple[str, int]] = []
    for at, (reason, rule) in enumerate(axis.rules):
        watched, allowed = _watched(axes, depth, rule, axis.values[None, few])
        if watched:
            return few, tuple(lost), axis.rules[at:]
        kept = np.broadcast_to(allowed, (1, len(few)))[0]
        if not kept.all():
            lost.append((reason, int(np.count_nonzero(~kept))))
        few = few[kept]
    return few, tuple(lost), ()


def contexts_read(axes: tuple[Axis, ...]) -> list[tuple[int, ...]]:
    """For each depth the earlier axes that the rules from there on read."""
    needs: list[tuple[int, ...]] = [()] * (len(axes) + 1)
    later: set[int] = set()
    for depth in range(len(axes) - 1, -1, -1):
        later |= _reads(axes, depth)
        needs[depth] = tuple(sorted(i for i in later if i < depth))
    return needs


def _reads(axes: tuple[Axis, ...], depth: int) -> set[int]:
    """The earlier axes that the rules of one axis read."""
    return set().union(*(_watched(axes, depth, rule, axes[depth].values[None, :])[0] for _, rule in axes[depth].rules))


def _watched(axes: tuple[Axis, ...], depth: int, rule: Rule, values: Value) -> tuple[set[int], Value]:
    """The earlier axes that a rule reads, found by watching it, and what it says of the first choices."""
    watched = _Chosen(axes, {i: np.zeros(min(len(axes[i].values), 1), np.int32) for i in range(depth)})
    with np.errstate(all="ignore"):
        said = rule(watched, values)
    return watched.read, said


def code_type(axes: tuple[Axis, ...]) -> type[np.int16] | type[np.int32]:
    """The narrower integer that numbers the levels of every axis."""
    return np.int16 if all(len(axis.values) < 1 << 15 for axis in axes) else np.int32


def _joined(axes: tuple[Axis, ...], split: int, rows: int) -> Iterator[CodeArray]:
    """Code matrices (axes, m ≤ rows) of all legal points in order: prefixes of `split` axes joined to their completions."""
    completions = _Completions(axes, split)
    for prefixes in _prefixes(axes, np.zeros((0, 1), code_type(axes)), split, rows):
        for start in range(0, prefixes.shape[1], _BLOCK):
            block = prefixes[:, start : start + _BLOCK]
            counts, offsets, tails = completions.of(block)
            yield from completed(block, counts, offsets, tails, rows)


def completed(
    prefixes: CodeArray, counts: IntArray, offsets: IntArray, tails: CodeArray, rows: int
) -> Iterator[CodeArray]:
    """Each prefix beside the `counts` completions that start at column `offsets` of `tails`, at most `rows` at a time."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    depth, width = len(prefixes), len(tails)
    for start in range(0, total, rows):
        stop = min(start + rows, total)
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        inside = slice(int(first), int(last) + 1)
        begins = ends[inside] - counts[inside]
        repeats = np.minimum(ends[inside], stop) - np.maximum(begins, start)
        parent = np.repeat(np.arange(inside.start, inside.stop), repeats)
        tail = np.arange(start, stop) + np.repeat(offsets[inside] - begins, repeats)
        matrix = np.empty((depth + width, stop - start), prefixes.dtype)
        np.take(prefixes, parent, axis=1, out=matrix[:depth], mode="clip")
        np.take(tails, tail, axis=1, out=matrix[depth:], mode="clip")
        yield matrix


def _prefixes(axes: tuple[Axis, ...], codes: CodeArray, depth: int, rows: int) -> Iterator[CodeArray]:
    """Legal choices of the first `depth` axes, depth first and sliced so that no batch outgrows `rows`."""
    at = len(codes)
    if at == depth:
        yield codes
        return
    step = max(1, rows // max(len(axes[at].values), 1))
    for start in range(0, codes.shape[1], step):
        part = codes[:, start : start + step]
        parent, choice = legal_extensions(axes, at, dict(enumerate(part)), part.shape[1])
        if len(parent):
            yield from _prefixes(axes, np.concatenate([part[:, parent], choice[None].astype(part.dtype)]), depth, rows)


class _Completions:
    """Legal choices of the axes from `split` on, found once per distinct context and remembered while they are few."""

    def __init__(self, axes: tuple[Axis, ...], split: int) -> None:
        self._axes = axes
        self._split = split
        self._reads = contexts_read(axes)[split]
        self._sizes = [len(axes[i].values) for i in self._reads]
        self._known: dict[int, int] = {}
        self._clear()

    def _clear(self) -> None:
        self._known.clear()
        self._counts = np.empty(0, np.int64)
        self._offsets = np.empty(0, np.int64)
        self._tails = np.empty((len(self._axes) - self._split, 0), code_type(self._axes))

    def of(self, prefixes: CodeArray) -> tuple[IntArray, IntArray, CodeArray]:
        """For each prefix how many completions it has and the column where they start; and all completions."""
        contexts = prefixes[list(self._reads)]
        keys, absolute = combination_keys(contexts, self._sizes)
        distinct, first, index = np.unique(keys, return_index=True, return_inverse=True)
        if not absolute or self._tails.shape[1] > _REMEMBERED:
            self._clear()
        new = [at for at, key in enumerate(distinct.tolist()) if key not in self._known]
        if new:
            self._learn(distinct[new].tolist(), contexts[:, first[new]])
        place = np.array([self._known[key] for key in distinct.tolist()], np.int64)[index]
        return self._counts[place], self._offsets[place], self._tails

    def _learn(self, keys: list[int], contexts: CodeArray) -> None:
        """Find the completions of contexts, codes of shape (reads, m)."""
        chosen: dict[int, CodeArray] = dict(zip(self._reads, contexts, strict=True))
        root = np.arange(len(keys))
        for depth in range(self._split, len(self._axes)):
            parent, choice = legal_extensions(self._axes, depth, chosen, len(root))
            root = root[parent]
            chosen = {i: codes[parent] for i, codes in chosen.items()} | {depth: choice.astype(np.int32)}
        counts = np.bincount(root, minlength=len(keys))
        tails = np.array([chosen[i] for i in range(self._split, len(self._axes))], self._tails.dtype)
        self._known |= {key: len(self._counts) + i for i, key in enumerate(keys)}
        self._offsets = np.concatenate([self._offsets, self._tails.shape[1] + np.cumsum(counts) - counts])
        self._counts = np.concatenate([self._counts, counts])
        self._tails = np.concatenate([self._tails, tails.reshape(self._tails.shape[0], len(root))], axis=1)


def _blocks(pieces: Iterator[CodeArray], rows: int) -> Iterator[CodeArray]:
    """The same columns in matrices of exactly `rows`, the last shorter."""
    held: list[CodeArray] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += piece.shape[1]
        if count >= rows:
            matrix = np.concatenate(held, axis=1) if len(held) > 1 else held[0]
            full = count - count % rows
            for start in range(0, full, rows):
                yield matrix[:, start : start + rows]
            held, count = ([matrix[:, full:]], count - full) if count > full else ([], 0)
    if count:
        yield np.concatenate(held, axis=1)


class _Chosen(Mapping[str, NDArray[Any]]):
    """Symbols of some chosen axes, each (n, 1), gathered only when a rule asks; `read` holds the axes it asked for."""

    def __init__(self, axes: tuple[Axis, ...], codes: Mapping[int, CodeArray]) -> None:
        self._codes = codes
        self._axes = axes
        self.read: set[int] = set()

    def __getitem__(self, symbol: str) -> NDArray[Any]:
        for i, codes in self._codes.items():
            if symbol in self._axes[i].symbols:
                self.read.add(i)
                return self._axes[i].symbols[symbol][codes][:, None]
        raise KeyError(f"a rule read '{symbol}', which no earlier axis binds (or which it reads for some values only)")

    def __iter__(self) -> Iterator[str]:
        return (symbol for i in self._codes for symbol in self._axes[i].symbols)

    def __len__(self) -> int:
        return sum(1 for _ in self)
