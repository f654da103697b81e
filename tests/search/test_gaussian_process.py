"""The regression against finite differences, against what it was fitted to, and on features that tell nothing."""

from __future__ import annotations

import numpy as np
from scipy.optimize import check_grad

from search.gaussian_process import Covariance, _surprise, fitted, likeliest

RANDOM = np.random.default_rng(0)
POINTS = RANDOM.standard_normal((40, 3))
VALUES = np.sin(2.0 * POINTS[:, 0]) + 0.5 * POINTS[:, 1]


def test_the_gradient_of_the_likelihood_is_that_of_finite_differences() -> None:
    usual = Covariance.first(3).logarithms
    values = (VALUES - VALUES.mean()) / VALUES.std()
    at = usual + RANDOM.normal(0.0, 0.3, len(usual))

    def surprise(logarithms: np.ndarray) -> float:
        return _surprise(logarithms, POINTS, values, usual[:3])[0]

    def gradient(logarithms: np.ndarray) -> np.ndarray:
        return _surprise(logarithms, POINTS, values, usual[:3])[1]

    assert check_grad(surprise, gradient, at) < 1e-4 * np.abs(gradient(at)).max()


def test_what_it_learnt_passes_by_the_points_and_weighs_what_tells_nothing_least() -> None:
    covariance = likeliest(POINTS, VALUES, Covariance.first(3))
    process = fitted(covariance, POINTS, VALUES)
    assert np.allclose(process.mean(POINTS), VALUES, atol=0.05)
    far = POINTS + np.array([3.0, 0.0, 0.0])
    assert process.deviation(POINTS).max() < process.deviation(far).min()
    assert covariance.weights[0] > 20 * covariance.weights[2]


def test_alike_values_and_a_single_point_are_no_fault() -> None:
    for points in (POINTS, POINTS[:1]):
        values = np.full(len(points), 7.0)
        process = fitted(likeliest(points, values, Covariance.first(3)), points, values)
        assert np.allclose(process.mean(POINTS), 7.0)
