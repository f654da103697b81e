"""The physical form with parameters of the measured device, or of its measured sibling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from costmodels.kernel_models.fitted import SYMBOLS, Calibration, Fit, is_current, read_fit
from costmodels.kernel_models.forms import Parameters, prepared, prior_time, variant
from costmodels.kernel_models.groups import spread_of
from costmodels.kernel_models.operations import DeviceSymbols, Shapes, bound_of, family_of, words_in
from costmodels.kernel_models.protocol import KernelTime, interval, merged
from costmodels.kernel_models.roofline import Roofline
from costmodels.kernel_models.siblings import sibling_of, transferred
from costmodels.metrics import Evidence
from spaces.columns import FloatArray

_TRANSFERRED = 1.5  # intervals of a sibling's parameters, where no device was ever left out to measure it


class Calibrated:
    """Fitted parameters of the device where it was measured (interpolated), of its sibling (extrapolated), else roofline."""

    @property
    def reads(self) -> frozenset[str]:
        """As the roofline, which answers where nothing was measured."""
        return Roofline().reads

    def predict(self, op: str, shapes: Shapes, device: DeviceSymbols) -> KernelTime:
        """As the protocol says."""
        fit = read_fit(family_of(op)) if family_of(op) else None
        return answer(op, shapes, device, fit, "calibrated", None)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Known:
    """Where the rows' parameters come from: a measured device, the parameters for the device asked about, and its own."""

    calibration: Calibration
    variants: dict[str, Parameters]
    same: bool


Residual: TypeAlias = Callable[[str, Shapes, FloatArray, Fit, Known], tuple[FloatArray, NDArray[np.bool_]]]
"""(op, prepared shapes, the form's seconds, fit, known device) -> log residual and whether the shape was taught."""
LogResidual: TypeAlias = Callable[[str, Shapes, FloatArray, Fit, Known], FloatArray]
"""The first of the two."""


def known_device(fit: Fit, device: DeviceSymbols) -> Known | None:
    """The measured device that stands for this one; None when none of its generation was measured."""
    return _known_device(fit, tuple((name, device[name]) for name in SYMBOLS if name in device))


@lru_cache(maxsize=256)
def _known_device(fit: Fit, figures: tuple[tuple[str, float], ...]) -> Known | None:
    """The same by the figures that tell devices apart."""
    device = dict(figures)
    sibling = sibling_of(device, fit.devices)
    if sibling is None:
        return None
    own = sibling.calibration
    others = [other for other in fit.devices.values() if other is not own]
    variants: dict[str, Parameters] = {}
    for other in others:  # a kernel measured on another device only
        variants |= transferred(other.variants, device, other.symbols)
    variants |= dict(own.variants) if sibling.same else transferred(own.variants, device, own.symbols)
    return Known(calibration=own, variants=variants, same=sibling.same)


def answer(
    op: str, shapes: Shapes, device: DeviceSymbols, fit: Fit | None, model: str, residual: Residual | None
) -> KernelTime:
    """Rows of measured operator variants by the fit, the others by the roofline.

    `residual` corrects the form in a learned model.
    """
    known = None if fit is None else known_device(fit, device)
    if fit is None or known is None or family_of(op) == "collectives":
        return Roofline().predict(op, shapes, device)
    at = prepared(op, shapes, device)
    has = _fitted_rows(op, at, device, known)
    parts = {}
    for name, rows in (("fitted", np.flatnonzero(has)), ("roofline", np.flatnonzero(~has))):
        if not len(rows):
            continue
        some = {column: values[rows] for column, values in at.items()}
        if name == "roofline":
            parts[name] = (rows, Roofline().predict(op, some, device))
        else:
            parts[name] = (rows, _fitted(op, some, device, fit, known, model, residual))
    return merged(parts, len(has))


def answer_seconds(op: str, shapes: Shapes, device: DeviceSymbols, fit: Fit, log_residual: LogResidual) -> FloatArray:
    """The seconds of `answer` alone, (n,): what an interval takes is left out; NaN where the roofline would answer."""
    at = prepared(op, shapes, device)
    found = np.full(len(at["dtype"]), np.nan)
    known = known_device(fit, device)
    if known is None or not (has := _fitted_rows(op, at, device, known)).any():
        return found
    some = at if has.all() else {column: values[has] for column, values in at.items()}
    prior = prior_time(op, some, device, known.variants)
    value = prior * np.exp(log_residual(op, some, prior, fit, known))
    floor = bound_of(op, some, device)
    found[has] = np.maximum(with_host(op, np.maximum(value, floor), some, known.calibration), floor)
    return found


def _fitted_rows(op: str, at: Shapes, device: DeviceSymbols, known: Known) -> NDArray[np.bool_]:
    """Which rows are of an operator variant that has parameters, (n,)."""
    kinds = variant(op, at, device)
    return np.isin(kinds, [kind for kind in words_in(kinds) if kind in known.variants])


def _fitted(
    op: str, at: Shapes, device: DeviceSymbols, fit: Fit, known: Known, model: str, residual: Residual | None
) -> KernelTime:
    value = prior_time(op, at, device, known.variants)
    inside = np.ones(len(value), dtype=np.bool_)
    if residual is not None:
        correction, inside = residual(op, at, value, fit, known)
        value = value * np.exp(correction)
    direct = known.same and is_current(fit)
    spread = spread_of(fit, model if known.same else "transfer", op, at, device)
    if not known.same and "transfer" not in fit.spreads:
        spread = _TRANSFERRED * spread
    spread = np.where(inside, spread, 2.0 * spread)
    evidence = np.where(inside & direct, Evidence.INTERPOLATED, Evidence.EXTRAPOLATED)
    floor = bound_of(op, at, device)
    return interval(with_host(op, np.maximum(value, floor), at, known.calibration), spread, evidence, floor)


def with_host(op: str, value: FloatArray, at: Shapes, calibration: Calibration) -> FloatArray:
    """Seconds with the host's where a row is launched from Python: the slower of the two, as calls queue up."""
    usual = calibration.host.get("", 15e-6)
    return np.asarray(np.where(at["launch"] == "eager", np.maximum(value, calibration.host.get(op, usual)), value))
