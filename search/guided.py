"""Guided search: a regression on the points evaluated so far chooses the next, for budgets of up to some thousand points.

Every cost is modelled by a Gaussian process (search/gaussian_process.py) on its logarithm, over the features of
search/encoding.py and what the cost model's bounds say of a point. In each round several optimistic guesses are made, mean
less some multiple of the deviation; what each would put on the front is evaluated. What a round costs does not grow with
the history: a process is fitted to the best points and a draw of the others, and asked about as many candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from search.archive import Archive
from search.encoding import Encoding, encoding
from search.evolutionary import bred_children, fittest, initial, promising_neighbours
from search.front import non_dominated
from search.gaussian_process import Covariance, Process, fitted, likeliest
from spaces.columns import FloatArray, IntArray

_ASKED = 2048  # candidates of a round
_DOUBTED = 512  # of those, how many are asked for their deviation
_BRED = 32  # points that children are bred from
_FITTED = 400  # points that a process is fitted to
_LEARNT = 200  # of those, how many its covariance is learnt from
_AGAIN = 2.0  # times as many points as when it was learnt last, until it is learnt again
_ROUNDS = 24  # wanted before the budget is spent
_FIRST = 8  # one in so many points of the budget is drawn before the first guess
_HOPES = (0.0, 0.5, 1.0, 2.0)  # deviations that a guess is optimistic by


def guided(archive: Archive, random: np.random.Generator) -> None:
    """Fit, guess and evaluate until the budget is spent or no candidate is left."""
    if not archive.ranking.size:
        return
    guide = _Guide(archive, encoding(archive.ranking))
    archive.evaluate(initial(archive, random, max(8, archive.most // _FIRST)))
    pool, seen = fittest(archive, np.empty(0, np.int64), 0, _FITTED // 2), len(archive)
    batch = max(4, archive.most // _ROUNDS)
    while archive.left > 0:
        candidates = _candidates(archive, pool, random)
        if not len(candidates):
            return
        archive.evaluate(guide.chosen(candidates, pool, random, min(batch, archive.left)))
        pool, seen = fittest(archive, pool, seen, _FITTED // 2), len(archive)


def _candidates(archive: Archive, pool: IntArray, random: np.random.Generator) -> IntArray:
    """Points that are neither known nor ruled out: neighbours of the front, children of the best, and a draw."""
    parts = (
        promising_neighbours(archive, pool, random, _ASKED // 2),
        bred_children(archive, pool[:_BRED], random, _ASKED // 4),
        initial(archive, random, _ASKED // 4),
    )
    return archive.fresh(np.concatenate(parts))


@dataclass(slots=True, eq=False)
class _Guide:
    """What was learnt of a space: the covariance of each figure, and from how many points."""

    archive: Archive
    coded: Encoding
    learnt: int = 0
    covariances: dict[int, Covariance] = field(default_factory=dict)

    def chosen(self, candidates: IntArray, pool: IntArray, random: np.random.Generator, count: int) -> IntArray:
        """`count` of the candidates: those that optimistic guesses put on the front, then those just behind."""
        archive = self.archive
        rows = self._rows(pool, random)
        fits = archive.violation[rows] <= 0
        if len(rows) < 4:
            return candidates[random.permutation(len(candidates))[:count]]
        known, asked = self._features(archive.ordinals[rows]), self._features(candidates)
        centre, scale = known.mean(axis=0), known.std(axis=0)
        scale = np.where(scale > 1e-9, scale, 1.0)
        known, asked = (known - centre) / scale, (asked - centre) / scale
        costs, over = _logarithms(archive.costs[rows]), np.clip(archive.violation[rows], -1.0, 1.0)
        figures = dict(enumerate(costs.T)) if fits.any() else {}
        if not fits.all():
            figures[costs.shape[1]] = over
        processes = self._processes(known, figures, random)
        told = [process for j, process in processes.items() if j < costs.shape[1] or not fits.any()]
        mean = np.column_stack([process.mean(asked) for process in told])
        if fits.any() and not fits.all():  # a violation that is expected makes every cost worse
            mean += np.maximum(processes[costs.shape[1]].mean(asked), 0.0)[:, None] * np.ptp(mean, axis=0)
        best = costs[fits][non_dominated(costs[fits])][:, : len(told)]  # none where nothing is feasible
        near = _nearest(mean, best, _DOUBTED)
        doubt = np.column_stack([process.deviation(asked[near]) for process in told])
        return candidates[near[_picked(mean[near], doubt, best, random, count)]]

    def _rows(self, pool: IntArray, random: np.random.Generator) -> IntArray:
        """Rows to fit to: the best, and a draw of the others."""
        sound = np.flatnonzero(np.isfinite(self.archive.costs).all(axis=1))
        if len(sound) <= _FITTED:
            return sound
        best = pool[: _FITTED // 2]
        others = np.setdiff1d(sound, best, assume_unique=True)
        return np.concatenate([best, random.choice(others, _FITTED - len(best), replace=False)])

    def _processes(
        self, points: FloatArray, figures: Mapping[int, FloatArray], random: np.random.Generator
    ) -> dict[int, Process]:
        """One for each figure (n,) of points (n, f)."""
        again = len(self.archive) >= _AGAIN * self.learnt
        some = random.permutation(len(points))[:_LEARNT]
        for j, figure in figures.items():
            start = self.covariances.get(j)
            if start is None or again:
                start = start or Covariance.first(points.shape[1])
                self.covariances[j] = likeliest(points[some], figure[some], start)
        if again:
            self.learnt = len(self.archive)
        return {j: fitted(self.covariances[j], points, figure) for j, figure in figures.items()}

    def _features(self, ordinals: IntArray) -> FloatArray:
        """Features of points with what the bounds say of them, shape (n, f)."""
        features = self.coded.features(ordinals)
        use = self.archive.proven(ordinals)
        if np.isfinite(use).all():
            features = np.column_stack([features, np.log1p(np.maximum(use, -0.999))])
        return features


def _nearest(mean: FloatArray, best: FloatArray, count: int) -> IntArray:
    """The rows of expected costs (n, k) that miss a front by least, by the objective that each misses it by least in."""
    if not len(best):
        return np.argsort(mean.sum(axis=1), kind="stable")[:count]
    spread = np.maximum(np.ptp(mean, axis=0), 1e-9)
    missed = np.full(len(mean), -np.inf)
    for rival in best:
        missed = np.maximum(missed, ((mean - rival) / spread).min(axis=1))
    return np.argsort(missed, kind="stable")[:count]


def _picked(
    mean: FloatArray, doubt: FloatArray, best: FloatArray, random: np.random.Generator, count: int
) -> IntArray:
    """`count` rows, in turn from what each guess puts on the front, first those that nothing beats, then those behind."""
    left = np.arange(len(mean))
    found: list[int] = []
    while len(found) < count and len(left):
        layers = []
        for hope in _HOPES:
            guess = mean[left] - hope * doubt[left]
            front = np.flatnonzero(non_dominated(np.concatenate([best, guess]))[len(best) :])
            layers.append(left[random.permutation(front)])
        taken = _in_turn(layers)[: count - len(found)]
        if not taken:  # all are expected behind the front: those nearest to it come next
            best = best[:0]
        found += taken
        left = np.setdiff1d(left, taken)
    return np.array(found, np.int64)


def _in_turn(layers: Sequence[IntArray]) -> list[int]:
    """Distinct members of some lists, one from each in turn."""
    longest = max(map(len, layers), default=0)
    turns = (int(layer[i]) for i in range(longest) for layer in layers if i < len(layer))
    return list(dict.fromkeys(turns))


def _logarithms(costs: FloatArray) -> FloatArray:
    """Costs on a scale on which they are sums rather than products; the order within each column stays."""
    with np.errstate(divide="ignore"):
        logs = np.where(costs > 0, np.log(np.abs(costs)), -np.log(np.abs(costs)))
    one_sign = ((costs > 0).all(axis=0)) | ((costs < 0).all(axis=0))
    return np.where(one_sign, logs, costs)
