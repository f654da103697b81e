"""Fits a form's bounded parameters to measured times: least squares on log time, robust against the odd row."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from costmodels.kernel_models.forms import Form
from costmodels.kernel_models.operations import DeviceSymbols, Shapes
from spaces.columns import FloatArray

_ROBUST = 0.1  # log error from which a row counts linearly
_HOLD = 0.02  # pull of an unused parameter to its start, in units of its range: a fit of few rows stays where physics puts it


def fit_parameters(
    form: Form, op: str, at: Shapes, device: DeviceSymbols, time: FloatArray, start: Mapping[str, float] | None = None
) -> dict[str, float]:
    """The form's parameters for measured seconds `time` of shape (n,), within their bounds; `start` as far as it is known."""
    low, high = (np.array([getattr(p, side) for p in form.parameters]) for side in ("low", "high"))
    first = np.array([(start or {}).get(p.name, p.start) for p in form.parameters])
    width = high - low

    def error(unit: NDArray[np.float64]) -> FloatArray:
        predicted = form.time(op, at, device, form.values(low + unit * width))
        return np.concatenate([np.log(predicted / time), _HOLD * (unit - origin)])

    origin = np.clip((first - low) / width, 1e-4, 1 - 1e-4)
    found = least_squares(
        error,
        origin,
        bounds=(0.0, 1.0),
        loss="soft_l1",
        f_scale=_ROBUST,
        diff_step=[1e-4] * len(origin),
        x_scale=0.1,
        max_nfev=40,
        ftol=1e-5,
    )
    return {name: round(value, 6) for name, value in form.values(low + found.x * width).items()}
