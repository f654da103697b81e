"""A Gaussian process that learns which features matter: the regression behind search/guided.py.

The covariance of two points is a line plus a Matérn function of smoothness 5/2, both over features of which each has a weight
of its own (Rasmussen & Williams 2006, Gaussian Processes for Machine Learning, eqs. 4.17 and 5.2: automatic relevance
determination). Weights, scales and noise are those of greatest likelihood (ibid., eqs. 5.8 and 5.9).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spaces.columns import FloatArray

_STEPS = 12  # of the ascent to the greatest likelihood: more changed predictions by less than a twentieth
_JITTER = 1e-8
_PART = 64  # points at a time: what they are worked on with stays in the cache
_DOUBT = 2.0  # standard deviation of a weight's logarithm about its first value: features that nothing tells apart stay alike


@dataclass(frozen=True, slots=True, eq=False)
class Covariance:
    """Logarithms of `weights` (f,) of the features, of the scales of the smooth part and of the line, and of the noise, in one
    vector (f + 3,)."""

    logarithms: FloatArray

    @classmethod
    def first(cls, features: int) -> Covariance:
        """Before anything is known: all features weigh alike."""
        return cls(np.array([-1.0 - np.log(max(features, 1))] * features + [0.0, -1.0, np.log(1e-3)]))

    @property
    def weights(self) -> FloatArray:
        """Weight of each feature, (f,)."""
        return np.exp(self.logarithms[:-3])

    @property
    def noise(self) -> float:
        """Variance of the noise."""
        return float(np.exp(self.logarithms[-1])) + _JITTER

    def between(self, first: FloatArray, second: FloatArray) -> FloatArray:
        """Covariances of points (n, f) and (m, f), shape (n, m)."""
        smooth, line = np.exp(self.logarithms[-3:-1])
        found = np.empty((len(first), len(second)))
        weighted, length = self.weights[:, None] * second.T, second**2 @ self.weights
        for start in range(0, len(first), _PART):
            part = first[start : start + _PART]
            product = part @ weighted
            matern, _, _ = _matern((part**2 @ self.weights)[:, None] + length - 2.0 * product)
            found[start : start + _PART] = smooth * matern + line * (1.0 + product)
        return found

    def own(self, points: FloatArray) -> FloatArray:
        """Variance of each point (n, f) before anything is known, shape (n,)."""
        smooth, line = np.exp(self.logarithms[-3:-1])
        return np.asarray(smooth + line * (1.0 + points**2 @ self.weights), np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Process:
    """A process fitted to n points: `factor` (n, n) is the lower Cholesky factor of their covariance."""

    covariance: Covariance
    points: FloatArray
    factor: FloatArray
    pull: FloatArray
    centre: float
    spread: float

    def mean(self, points: FloatArray) -> FloatArray:
        """What is expected at points (m, f), shape (m,)."""
        return np.asarray(self.centre + self.spread * (self.covariance.between(points, self.points) @ self.pull))

    def deviation(self, points: FloatArray) -> FloatArray:
        """Standard deviation of that, shape (m,)."""
        from scipy.linalg import solve_triangular

        cross = self.covariance.between(points, self.points)
        inner = solve_triangular(self.factor, cross.T, lower=True, check_finite=False)
        return np.asarray(self.spread * np.sqrt(np.maximum(self.covariance.own(points) - (inner**2).sum(axis=0), 1e-12)))


def fitted(covariance: Covariance, points: FloatArray, values: FloatArray) -> Process:
    """The process that passes by values (n,) at points (n, f)."""
    from scipy.linalg import cho_solve, cholesky

    wanted, centre, spread = _scaled(values)
    matrix = covariance.between(points, points)
    matrix[np.diag_indices(len(points))] += covariance.noise
    factor = cholesky(matrix, lower=True, check_finite=False)
    return Process(covariance, points, factor, cho_solve((factor, True), wanted, check_finite=False), centre, spread)


def likeliest(points: FloatArray, values: FloatArray, start: Covariance) -> Covariance:
    """The covariance under which values (n,) at points (n, f) are likeliest, looked for from another one on."""
    from scipy.optimize import minimize

    features = points.shape[1]
    limits = [(-12.0, 3.0)] * features + [(-4.0, 5.0), (-6.0, 3.0), (-13.0, 0.0)]
    found = minimize(
        _surprise,
        start.logarithms,
        args=(points, _scaled(values)[0], Covariance.first(features).logarithms[:features]),
        jac=True,
        method="L-BFGS-B",
        bounds=limits,
        options={"maxiter": _STEPS},
    )
    return Covariance(np.asarray(found.x, np.float64))


def _surprise(
    logarithms: FloatArray, points: FloatArray, values: FloatArray, usual: FloatArray
) -> tuple[float, FloatArray]:
    """Minus the logarithm of the likelihood, less a constant, and its gradient."""
    from scipy.linalg import cho_solve, cholesky

    covariance = Covariance(logarithms)
    weights, (smooth, line) = covariance.weights, np.exp(logarithms[-3:-1])
    square = points**2
    product = (points * weights) @ points.T
    length = square @ weights
    matern, fall, root = _matern(length[:, None] + length[None, :] - 2.0 * product)
    matrix = smooth * matern + line * (1.0 + product)
    matrix[np.diag_indices(len(points))] += covariance.noise
    factor = cholesky(matrix, lower=True, check_finite=False)
    pull = cho_solve((factor, True), values, check_finite=False)
    inverse = cho_solve((factor, True), np.eye(len(points)), check_finite=False)
    push = 0.5 * (inverse - np.outer(pull, pull))  # gradient by the entries of the matrix, ibid. eq. 5.9
    steep = push * (-5.0 / 6.0 * smooth) * (1.0 + root) * fall  # by the squared distances
    # Σ_ij steep_ij (x_i − x_j)² of each feature, without the (n, n, f) array of differences
    apart = 2.0 * (steep.sum(axis=1) @ square - ((steep @ points) * points).sum(axis=0))
    doubt = (logarithms[:-3] - usual) / _DOUBT
    by_weight = weights * (apart + line * ((push @ points) * points).sum(axis=0)) + doubt / _DOUBT
    by_scale = [(push * matern).sum() * smooth, (push * (1.0 + product)).sum() * line]
    gradient = np.concatenate([by_weight, by_scale, [np.trace(push) * (covariance.noise - _JITTER)]])
    value = 0.5 * values @ pull + np.log(np.diag(factor)).sum() + 0.5 * (doubt**2).sum()
    return float(value), gradient


def _matern(distance: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Of squared distances: the function itself, its exponential alone, and the root that both are made of."""
    root = np.sqrt(np.maximum(5.0 * distance, 0.0))
    fall = np.exp(-root)
    return (1.0 + root * (1.0 + root / 3.0)) * fall, fall, root


def _scaled(values: FloatArray) -> tuple[FloatArray, float, float]:
    """Values in units of their spread about their mean, the mean and the spread."""
    centre, spread = float(values.mean()), float(values.std()) or 1.0
    return (values - centre) / spread, centre, spread
