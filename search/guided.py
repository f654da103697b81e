"""Guided search: a regression on the points evaluated so far chooses the next, for budgets of few points.

Every cost is modelled by a Gaussian process on its logarithm, over the features of search/encoding.py and what the cost model's
bounds say of a point (Rasmussen & Williams 2006, ch. 2 and 5.4.2: mean and variance, and the leave-one-out error by which
length and noise are chosen). In each round several optimistic guesses are drawn, mean less some multiple of the deviation;
what each puts on the front is evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from search.archive import Archive
from search.encoding import Encoding, encoding
from search.evolutionary import bred_children, fittest, initial, promising_neighbours
from search.front import non_dominated
from spaces.columns import FloatArray, IntArray

_LISTED = 1 << 15  # candidates looked at: a smaller space is looked at whole
_FITTED = 600  # points a process is fitted to: the cost of it grows with their cube
_ROUNDS = 20  # wanted before the budget is spent
_LENGTHS = (0.5, 1.0, 2.0, 4.0)  # in units of the features' spread
_NOISES = (1e-6, 1e-4, 1e-2)
_HOPES = (0.0, 0.5, 1.0, 2.0)  # deviations that a guess is optimistic by


def guided(archive: Archive, random: np.random.Generator) -> None:
    """Fit, guess and evaluate until the budget is spent or no candidate is left."""
    if not archive.ranking.size:
        return
    coded = encoding(archive.ranking)
    archive.evaluate(initial(archive, random, max(8, archive.most // 6)))
    batch = max(4, archive.most // _ROUNDS)
    while archive.left > 0:
        candidates = _candidates(archive, random)
        if not len(candidates):
            return
        chosen = _chosen(archive, coded, candidates, random, min(batch, archive.left))
        archive.evaluate(chosen)


def _candidates(archive: Archive, random: np.random.Generator) -> IntArray:
    """Points that are neither known nor ruled out: all of a small space, else neighbours, children and a draw."""
    if archive.ranking.size <= _LISTED:
        everything = archive.fresh(np.arange(archive.ranking.size))
        return everything[~archive.rule_out(everything)]
    pool = fittest(archive, np.empty(0, np.int64), 0)
    parts = (
        promising_neighbours(archive, pool, random, _LISTED // 16),
        bred_children(archive, pool, random, _LISTED // 32),
        initial(archive, random, _LISTED // 32),
    )
    return archive.fresh(np.concatenate(parts))


def _chosen(
    archive: Archive, coded: Encoding, candidates: IntArray, random: np.random.Generator, count: int
) -> IntArray:
    """The candidates that optimistic guesses put on the front, `count` of them; the rest is drawn."""
    rows = np.flatnonzero(np.isfinite(archive.costs).all(axis=1))
    if len(rows) < 4:
        return random.permutation(candidates)[:count]
    if len(rows) > _FITTED:
        recent = rows[-_FITTED // 2 :]
        rows = np.concatenate([random.choice(rows[: -_FITTED // 2], _FITTED // 2, replace=False), recent])
    known = _features(archive, coded, archive.ordinals[rows])
    asked = _features(archive, coded, candidates)
    means, deviations = [], []
    for column in _logarithms(archive.costs[rows]).T:
        mean, deviation = fitted(known, column).predict(asked)
        means.append(mean)
        deviations.append(deviation)
    mean, deviation = np.column_stack(means), np.column_stack(deviations)
    fits = archive.violation[rows] <= 0
    over = np.clip(archive.violation[rows], -1.0, 1.0)
    if fits.any() and not fits.all():
        doubt, _ = fitted(known, over).predict(asked)
        mean = mean + np.maximum(doubt, 0.0)[:, None] * np.ptp(mean, axis=0)
    best = _logarithms(archive.costs[rows])[fits]
    found: list[int] = []
    for hope in random.permutation(_HOPES):
        guess = mean - hope * deviation
        front = np.flatnonzero(non_dominated(np.concatenate([best, guess]))[len(best) :])
        gain = deviation[front].sum(axis=1) * hope + random.random(len(front)) * 1e-3
        found += front[np.argsort(-gain)].tolist()[: -(-2 * count // len(_HOPES))]
    distinct = list(dict.fromkeys(random.permutation(found).tolist()))[:count]
    chosen = candidates[np.array(distinct, np.int64)]
    if len(chosen) < count:
        pool = fittest(archive, np.empty(0, np.int64), 0)
        near = promising_neighbours(archive, pool, random, count - len(chosen))
        chosen = archive.fresh(np.concatenate([chosen, near]))
    if len(chosen) < count:
        chosen = archive.fresh(np.concatenate([chosen, random.permutation(candidates)[: count - len(chosen)]]))
    return chosen


def _features(archive: Archive, coded: Encoding, ordinals: IntArray) -> FloatArray:
    """Features of points with what the bounds say of them, shape (n, f)."""
    features = coded.features(ordinals)
    use = archive.proven(ordinals)
    if np.isfinite(use).all():
        features = np.column_stack([features, np.log1p(np.maximum(use, -0.999))])
    return features


def _logarithms(costs: FloatArray) -> FloatArray:
    """Costs on a scale on which they are sums rather than products; the order within each column stays."""
    with np.errstate(divide="ignore"):
        logs = np.where(costs > 0, np.log(np.abs(costs)), -np.log(np.abs(costs)))
    one_sign = ((costs > 0).all(axis=0)) | ((costs < 0).all(axis=0))
    return np.where(one_sign, logs, costs)


@dataclass(frozen=True, slots=True, eq=False)
class Process:
    """A Gaussian process fitted to n points: a line plus a smooth function, in units of the data's spread."""

    points: FloatArray
    centre: FloatArray
    scale: FloatArray
    length: float
    factor: FloatArray  # (n, n) lower Cholesky factor
    weights: FloatArray
    mean: float
    spread: float

    def predict(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation at points (m, f), each (m,)."""
        from scipy.linalg import solve_triangular

        mean, deviation = np.empty(len(points)), np.empty(len(points))
        for start in range(0, len(points), 8192):
            part = (points[start : start + 8192] - self.centre) / self.scale
            cross = _kernel(part, self.points, self.length)
            mean[start : start + 8192] = cross @ self.weights
            inner = solve_triangular(self.factor, cross.T, lower=True, check_finite=False)
            own = 1.0 + 1.0 + (part**2).sum(axis=1) / part.shape[1]
            deviation[start : start + 8192] = np.sqrt(np.maximum(own - (inner**2).sum(axis=0), 1e-12))
        return self.mean + self.spread * mean, self.spread * deviation


def fitted(points: FloatArray, values: FloatArray) -> Process:
    """The process of least leave-one-out error among a few lengths and noises, for values (n,) at points (n, f)."""
    from scipy.linalg import cho_solve, cholesky

    centre = points.mean(axis=0)
    scale = np.where((spread := points.std(axis=0)) > 1e-9, spread, 1.0)
    scaled = (points - centre) / scale
    mean, deviation = float(values.mean()), float(values.std()) or 1.0
    wanted = (values - mean) / deviation
    best: tuple[float, Process] | None = None
    for length in _LENGTHS:
        kernel = _kernel(scaled, scaled, length)
        for noise in _NOISES:
            factor = cholesky(kernel + noise * np.eye(len(points)), lower=True, check_finite=False)
            weights = cho_solve((factor, True), wanted, check_finite=False)
            inverse = cho_solve((factor, True), np.eye(len(points)), check_finite=False)
            error = float(np.mean((weights / np.diag(inverse)) ** 2))
            if best is None or error < best[0]:
                best = error, Process(scaled, centre, scale, length, factor, weights, mean, deviation)
    assert best is not None
    return best[1]


def _kernel(first: FloatArray, second: FloatArray, length: float) -> FloatArray:
    """One for a constant and a line, one for a smooth function of that length; shape (n, m)."""
    f = first.shape[1]
    product = first @ second.T
    square = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)[None, :] - 2.0 * product
    return np.asarray(1.0 + product / f + np.exp(-np.maximum(square, 0.0) / (2.0 * length**2 * f)), np.float64)
