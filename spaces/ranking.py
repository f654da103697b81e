"""Legal points by number: the n-th point of a space, the number of a point, uniform draws and the nearest legal point.

A space is a layered graph: layer d holds the distinct contexts (levels that the rules from axis d on read), an edge is one
legal level of axis d, and a path is a point. Counting paths from the far end makes ordinals exact without listing a
point, and dead ends are removed, so that a walk along edges always ends at a legal point.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from spaces.columns import CodeArray, Columns, IntArray
from spaces.space import Axis, Space, walk

_MOST = 1 << 62  # ordinals fit a signed 64-bit integer


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """Edges of one axis: m contexts, e edges sorted by (context, level).

    `first` (m + 1,) is where each context's edges begin, `level` (e,) the level chosen, `child` (e,) the context it leads to in
    the next layer, `before` (e + 1,) the completions of all earlier edges of the layer. `levels` is how many the axis has,
    `key` (e,) context · levels + level, ascending.
    """

    first: IntArray
    level: IntArray
    child: IntArray
    before: IntArray
    levels: int
    key: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """A space whose points are numbered 0 … size − 1 in the order of `Space.batches`."""

    space: Space
    layers: tuple[Layer, ...]
    size: int

    def unrank(self, ordinals: IntArray) -> CodeArray:
        """The points of these numbers, level codes of shape (axes, n). Raises ValueError outside 0 … size − 1."""
        left = np.asarray(ordinals, np.int64)
        if len(left) and (left.min() < 0 or left.max() >= self.size):
            raise ValueError(f"ordinals run from 0 to {self.size - 1}, got {left.min()} … {left.max()}")
        codes = np.empty((len(self.layers), len(left)), np.int32)
        context = np.zeros(len(left), np.int64)
        for row, layer in zip(codes, self.layers, strict=True):
            total = left + layer.before[layer.first[context]]
            edge = np.searchsorted(layer.before, total, side="right") - 1
            left = total - layer.before[edge]
            row[:] = layer.level[edge]
            context = layer.child[edge]
        return codes

    def rank(self, codes: CodeArray) -> IntArray:
        """The numbers of points, level codes (axes, n); −1 for a point that is not legal. Shape (n,)."""
        start, count = self.spans(codes)
        return np.where(count > 0, start, -1)

    def spans(self, codes: CodeArray) -> tuple[IntArray, IntArray]:
        """Partial choices of the first axes, level codes (depth, n), as runs of points: their first number and how many.

        A partial choice that no point completes is a run of none.
        """
        start = np.zeros(codes.shape[1], np.int64)
        context = np.zeros(codes.shape[1], np.int64)
        alive = np.full(codes.shape[1], self.size > 0)
        for row, layer in zip(codes, self.layers, strict=False):
            if not len(layer.level):
                break
            edge = np.minimum(_place(layer, context, row), len(layer.level) - 1)
            alive &= (layer.level[edge] == row) & (edge >= layer.first[context]) & (edge < layer.first[context + 1])
            start += layer.before[edge] - layer.before[layer.first[context]]
            context = layer.child[edge]
        if len(codes) == len(self.layers):
            return start, alive.astype(np.int64)
        after = self.layers[len(codes)]
        count = after.before[after.first[context + 1]] - after.before[after.first[context]]
        return start, np.where(alive, count, 0)

    def nearest(self, codes: CodeArray, random: np.random.Generator | None = None) -> CodeArray:
        """Legal points near any level codes (axes, n): axis by axis the legal level that is closest, the lower of two.

        A legal point is its own nearest. Each choice is conditional on those before it, which is how an illegal mixture
        of two plans is mended. A negative code is open: a level drawn uniformly from the legal ones (needs `random`).
        Raises ValueError when the space is empty.
        """
        if not self.size:
            raise ValueError("a space of no points has no nearest one")
        found = np.empty(codes.shape, np.int32)
        context = np.zeros(codes.shape[1], np.int64)
        for target, row, layer in zip(codes, found, self.layers, strict=True):
            low, high = layer.first[context], layer.first[context + 1] - 1
            at = np.clip(_place(layer, context, target), low, high)
            under = np.maximum(at - 1, low)
            edge = np.where(np.abs(layer.level[under] - target) <= np.abs(layer.level[at] - target), under, at)
            if random is not None:
                edge = np.where(target < 0, random.integers(low, high + 1), edge)
            row[:] = layer.level[edge]
            context = layer.child[edge]
        return found

    def draw(self, random: np.random.Generator, count: int) -> IntArray:
        """Ordinals of `count` points drawn uniformly without repetition (all where there are fewer), in random order."""
        if count >= self.size:
            return random.permutation(self.size)
        if self.size <= 4 * count:
            return random.permutation(self.size)[:count]
        drawn = np.empty(0, np.int64)
        while len(drawn) < count:
            more = np.concatenate([drawn, random.integers(0, self.size, count - len(drawn) + 16)])
            _, first = np.unique(more, return_index=True)
            drawn = more[np.sort(first)]
        return drawn[:count]

    def columns(self, ordinals: IntArray) -> Columns:
        """The points of these numbers as columns."""
        return self.space.columns(self.unrank(ordinals))


def _place(layer: Layer, context: IntArray, level: CodeArray) -> IntArray:
    """The first edge of each context whose level is not below the given one, as if edges were one sorted list."""
    return np.searchsorted(layer.key, context * layer.levels + np.clip(level, 0, layer.levels - 1))


def ranking(space: Space) -> Ranking:
    """Number the points of a space. Raises ValueError for spaces of more than 2^62 points."""
    layers = _layers(space.axes)
    return Ranking(space=space, layers=layers, size=int(layers[0].before[-1]) if layers else 1)


@lru_cache(maxsize=8)
def _layers(axes: tuple[Axis, ...]) -> tuple[Layer, ...]:
    """Completions counted backward along the edges of `walk`; those that lead nowhere are left out."""
    found = walk(axes).edges
    completions = np.ones(int(found[-1].child.max(initial=-1)) + 1 if found else 1, np.int64)
    layers: list[Layer] = []
    for axis, edges in zip(reversed(axes), reversed(found), strict=True):
        each = completions[edges.child]
        if float(each.sum(dtype=np.float64)) >= _MOST:
            raise ValueError("the space holds more than 2^62 points: restrict an axis, or search it in two levels")
        alive = each > 0
        parent, level, child, each = edges.parent[alive], edges.level[alive], edges.child[alive], each[alive]
        first = np.searchsorted(parent, np.arange(edges.contexts + 1))
        before = np.concatenate([[0], np.cumsum(each)])
        completions = before[first[1:]] - before[first[:-1]]
        levels = len(axis.values)
        layers.append(Layer(first, level, child, before, levels, parent * levels + level))
    return tuple(reversed(layers))
