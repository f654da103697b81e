"""Evolutionary and local search over encoded points, a whole generation at a time.

Parents are drawn from the best by (violation, front, crowding); children mix the axes of two parents and move some to other
levels; what is illegal is mended by choosing again, axis by axis, the nearest legal level. Each generation also looks at
the neighbours of the front. Ranking after NSGA-II (Deb et al. 2002, https://doi.org/10.1109/4235.996017, §III); infeasible
points are compared by violation (ibid. §VI).
"""

from __future__ import annotations

import numpy as np

from search.archive import Archive
from search.front import non_dominated
from spaces.columns import CodeArray, FloatArray, IntArray
from spaces.ranking import Ranking

_SMALLEST, _LARGEST = 16, 2048  # points of a generation
_GENERATIONS = 24  # wanted before the budget is spent
_LOCAL = 0.5  # share of a generation that neighbours of the front take
_LISTED = 1 << 17  # points of a space that is listed when draws find nothing new
_TRIES = 6  # children bred for one that is evaluated: many are known already or ruled out by bounds


def evolve(archive: Archive, random: np.random.Generator) -> None:
    """Evolve until the budget is spent or neither breeding nor neighbours give anything new."""
    ranking = archive.ranking
    if not ranking.size:
        return
    size = generation_size(archive.most)
    archive.evaluate(initial(archive, random, 2 * size))
    pool = fittest(archive, np.empty(0, np.int64), 0, size)
    while archive.left > 0:
        wanted, seen = min(size, archive.left), len(archive)
        near = promising_neighbours(archive, pool, random, round(_LOCAL * wanted))
        bred = bred_children(archive, pool, random, wanted - len(near))
        batch = archive.fresh(np.concatenate([near, bred]))
        if len(batch) < wanted:
            batch = archive.fresh(np.concatenate([batch, initial(archive, random, wanted - len(batch))]))
        if not len(batch):
            return
        archive.evaluate(batch)
        pool = fittest(archive, pool, seen, size)


def fittest(archive: Archive, pool: IntArray, seen: int, size: int) -> IntArray:
    """Rows of the archive to breed from, `size` at most, best first: the best of a pool and of all rows from `seen` on.

    Only what is new is compared with the pool, so that a generation costs the same however long the history.
    """
    rows = np.concatenate([pool, np.arange(seen, len(archive))])
    return rows[survivors(archive.costs[rows], archive.violation[rows], size)]


def generation_size(most: int) -> int:
    """Points of a generation for a budget of `most`."""
    return int(np.clip(most // _GENERATIONS, _SMALLEST, _LARGEST))


def initial(archive: Archive, random: np.random.Generator, count: int) -> IntArray:
    """New points drawn uniformly from those that no bound rules out, as many as `count` where they can be found."""
    found = np.empty(0, np.int64)
    tried = 0
    while len(found) < count and tried < 4:
        tried += 1
        drawn = archive.fresh(archive.ranking.draw(random, 4 * count))
        drawn = drawn[~np.isin(drawn, found)]
        found = np.concatenate([found, drawn[~archive.rule_out(drawn)]])
    if len(found) < count and archive.ranking.size <= _LISTED:
        left = archive.fresh(random.permutation(archive.ranking.size))
        found = left[~archive.rule_out(left)]
    return found[:count]


def promising_neighbours(archive: Archive, pool: IntArray, random: np.random.Generator, count: int) -> IntArray:
    """New neighbours of the front, or of the best of the pool where nothing is feasible, in random order, at most `count`."""
    lead = archive.front.points.ordinals if len(archive.front) else archive.ordinals[pool[:8]]
    near = archive.fresh(neighbours(archive.ranking, archive.ranking.unrank(lead)))
    near = near[random.permutation(len(near))[: 2 * count]]
    return near[~archive.rule_out(near)][:count]


def neighbours(ranking: Ranking, codes: CodeArray) -> IntArray:
    """Every other point that one axis at another level leads to from points (axes, n), once each, ascending.

    The other axes keep their levels where that is legal, and are mended where not.
    """
    found = []
    for axis, layer in enumerate(ranking.layers):
        if layer.levels < 2:
            continue
        moved = np.repeat(codes, layer.levels, axis=1)
        moved[axis] = np.tile(np.arange(layer.levels), codes.shape[1])
        moved = moved[:, moved[axis] != np.repeat(codes[axis], layer.levels)]
        found.append(ranking.rank(ranking.nearest(moved)))
    return np.setdiff1d(np.concatenate(found), ranking.rank(codes)) if found else np.empty(0, np.int64)


def bred_children(archive: Archive, pool: IntArray, random: np.random.Generator, count: int) -> IntArray:
    """New children of the pool's points, at most `count`."""
    if not len(pool) or count <= 0:
        return np.empty(0, np.int64)
    parents = archive.ranking.unrank(archive.ordinals[pool])
    born = archive.fresh(offspring(archive.ranking, parents, random, _TRIES * count))
    return born[~archive.rule_out(born)][:count]


def offspring(ranking: Ranking, parents: CodeArray, random: np.random.Generator, count: int) -> IntArray:
    """Ordinals of `count` children of parents (axes, m; best first): axes of two of them, some moved, mended."""
    n = parents.shape[1]
    first = random.integers(0, n, (2, count)).min(axis=0)  # a tournament of two: parents come best first
    second = random.integers(0, n, (2, count)).min(axis=0)
    mixed = np.where(random.random((len(parents), count)) < 0.5, parents[:, first], parents[:, second])
    levels = np.array([layer.levels for layer in ranking.layers])
    free = max(int(np.count_nonzero(levels > 1)), 1)
    step = random.choice([-2, -1, 1, 2], mixed.shape, p=[0.15, 0.35, 0.35, 0.15])
    moved = np.where(random.random(mixed.shape) < 1.5 / free, np.clip(mixed + step, 0, levels[:, None] - 1), mixed)
    opened = np.where(random.random(mixed.shape) < 0.5 / free, -1, moved)
    return ranking.rank(ranking.nearest(opened, random))


def survivors(costs: FloatArray, violation: FloatArray, count: int) -> IntArray:
    """The best `count` rows, best first: feasible before infeasible, by front and crowding, the others by violation."""
    fits = np.flatnonzero(violation <= 0)
    rank = fronts(costs[fits], count)
    chosen = []
    for level in range(int(rank.max(initial=-1)) + 1):
        members = fits[rank == level]
        chosen.append(members[np.argsort(-crowding(costs[members]), kind="stable")])
    rest = np.flatnonzero(~(violation <= 0) & np.isfinite(violation))
    chosen.append(rest[np.argsort(violation[rest], kind="stable")])
    return np.concatenate(chosen)[:count] if len(costs) else np.empty(0, np.int64)


def fronts(costs: FloatArray, enough: int) -> IntArray:
    """The front that each row of costs (n, k) lies on, 0 the best; −1 once `enough` rows are placed. Shape (n,)."""
    rank = np.full(len(costs), -1)
    left = np.arange(len(costs))
    level = 0
    while len(left) and len(costs) - len(left) < enough:
        best = non_dominated(costs[left])
        rank[left[best]] = level
        left = left[~best]
        level += 1
    return rank


def crowding(costs: FloatArray) -> FloatArray:
    """Distance of each row of one front to its neighbours, summed over objectives; infinite at the ends. Shape (n,)."""
    n, k = costs.shape
    distance = np.zeros(n)
    for column in range(k):
        order = np.argsort(costs[:, column], kind="stable")
        sorted_ = costs[order, column]
        span = sorted_[-1] - sorted_[0] if n else 0.0
        distance[order[[0, -1]]] = np.inf
        if n > 2 and span > 0:
            distance[order[1:-1]] += (sorted_[2:] - sorted_[:-2]) / span
    return distance
