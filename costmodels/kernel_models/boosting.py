"""lightgbm, imported here and nowhere else: fits a residual and gives it back as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spaces.columns import FloatArray

ROUNDS = {"gemm": 500, "attention": 300, "pointwise": 200}
"""Trees by family."""
_SETTINGS: dict[str, Any] = {
    "objective": "regression_l1",  # of log time: a clock that dipped is no property of a shape
    "num_leaves": 20,
    "learning_rate": 0.04,
    "min_data_in_leaf": 8,
    "feature_fraction": 0.6,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 1.0,
    "num_threads": 1,
    "seed": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


def fit_residual(
    family: str, x: FloatArray, y: FloatArray, names: Sequence[str], weight: FloatArray | None = None, **settings: Any
) -> str:
    """A lightgbm text model of y (n,), the log of measured over prior time, on x (n, features); deterministic.

    Raises ModuleNotFoundError where lightgbm is not installed: predicting does not need it, fitting does.
    """
    import lightgbm

    plain = [name.replace(" ", "_") for name in names]
    data = lightgbm.Dataset(x, label=y, weight=weight, feature_name=plain, free_raw_data=False)
    booster = lightgbm.train(_SETTINGS | settings, data, num_boost_round=ROUNDS[family])
    return str(booster.model_to_string())
