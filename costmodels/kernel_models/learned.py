"""The calibrated form times a boosted residual, inside what was taught; outside, the nearest edge's efficiency is held."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from costmodels.kernel_models import features
from costmodels.kernel_models.calibrated import Calibrated, Known, answer, answer_seconds, with_host
from costmodels.kernel_models.domain import clipped, inside
from costmodels.kernel_models.exact import Table, measured, measured_rows, read_known, same_device
from costmodels.kernel_models.fitted import Fit, is_current, read_fit
from costmodels.kernel_models.forms import prior_time, variant
from costmodels.kernel_models.groups import spread_of
from costmodels.kernel_models.operations import (
    DeviceSymbols,
    Shapes,
    complete,
    datasheet_bound,
    dimensions,
    family_of,
    words_in,
)
from costmodels.kernel_models.protocol import KernelTime, interval, known_seconds
from costmodels.kernel_models.roofline import Roofline, collective_prior
from costmodels.kernel_models.siblings import sibling_of
from costmodels.metrics import Evidence
from spaces.columns import FloatArray


class Learned:
    """Calibrated prior × residual; measured shapes as measured. A fit of other data or code is not used, but its form is."""

    @property
    def reads(self) -> frozenset[str]:
        """As the calibrated model."""
        return Calibrated().reads

    def predict(self, op: str, shapes: Shapes, device: DeviceSymbols) -> KernelTime:
        """As the protocol says."""
        family = family_of(op)
        fit = read_fit(family) if family else None
        if fit is None:
            return Roofline().predict(op, shapes, device)
        if family == "collectives":
            return collective(op, shapes, device, fit)
        if fit.trees is None:
            return Calibrated().predict(op, shapes, device)
        time = answer(op, shapes, device, fit, "learned", residual)
        for table in self._tables(op, family, fit, device):
            time = measured(op, shapes, device, time, table)
        return time

    def seconds(self, op: str, shapes: Shapes, device: DeviceSymbols) -> FloatArray:
        """As the protocol of `costmodels.kernel_models.protocol.SecondsAlone` says."""
        if family_of(op) in ("", "collectives"):
            return self.predict(op, shapes, device).value
        value = self.taught_seconds(op, shapes, device)
        return value if np.isfinite(value).all() else self.predict(op, shapes, device).value

    def taught_seconds(self, op: str, shapes: Shapes, device: DeviceSymbols) -> FloatArray:
        """The same."""
        family = family_of(op)
        fit = read_fit(family) if family else None
        if fit is None or family == "collectives" or fit.trees is None:
            return known_seconds(self.predict(op, shapes, device))
        value = answer_seconds(op, shapes, device, fit, log_residual)
        for table in self._tables(op, family, fit, device):
            rows, pairs = measured_rows(op, shapes, device, table)
            value[rows] = pairs[:, 0]
        return value

    def _tables(self, op: str, family: str, fit: Fit, device: DeviceSymbols) -> list[Table]:
        """Shapes of an operator that were measured on the device."""
        names = [name for name, own in fit.devices.items() if same_device(device, own.symbols)]
        known = read_known(family)
        return [known[name].get(op, {}) for name in names if name in known]


def residual(op: str, at: Shapes, value: FloatArray, fit: Fit, known: Known) -> tuple[FloatArray, NDArray[np.bool_]]:
    """`log_residual`, and whether each row lies inside what was taught."""
    kinds = variant(op, at, known.calibration.symbols)
    taught = np.zeros(len(kinds), dtype=np.bool_)
    for kind in np.unique(kinds).tolist():
        rows = np.flatnonzero(kinds == kind)
        taught[rows] = inside(fit.domains[kind], op, {name: values[rows] for name, values in at.items()})
    return log_residual(op, at, value, fit, known), taught


def log_residual(op: str, at: Shapes, value: FloatArray, fit: Fit, known: Known) -> FloatArray:
    """Log residual of each row on the measured device that stands for it, (n,).

    On another device this is the sibling's time × the ratio of the two priors. A row outside takes the residual of the
    shape at the nearest edge, so that efficiency is held while the prior goes on. `value` (n,) is the prior of this device.
    """
    assert fit.trees is not None
    measured = known.calibration.symbols
    kinds = variant(op, at, measured)
    log = np.zeros(len(kinds))
    variants = known.variants | dict(known.calibration.variants)
    for kind in words_in(kinds):
        rows = np.flatnonzero(kinds == kind)
        some = {name: values[rows] for name, values in at.items()}
        edge = clipped(fit.domains[kind], op, some)
        moved = any(np.any(edge[name] != some[name]) for name in dimensions(op))
        prior = prior_time(op, edge, measured, variants) if moved or not known.same else value[rows]
        log[rows] = fit.trees.predict(features.matrix(op, edge, measured, prior))
    return log


def collective(op: str, shapes: Shapes, device: DeviceSymbols, fit: Fit) -> KernelTime:
    """α–β on the device's links; between two ranks times the measured curve over sizes, held at its ends.

    Two ranks do not tell the algorithm of a larger group: more ranks have α–β alone, and are extrapolated as another
    device's links are.
    """
    at = complete(op, shapes)
    prior = collective_prior(op, at, device)
    sibling = sibling_of(device, fit.devices)
    if sibling is None or op not in fit.curves or not is_current(fit):
        return Roofline().predict(op, shapes, device)
    within = at["ranks"] <= at["ranks_per_node"]
    points = np.asarray(fit.curves[op])
    each = np.log2(np.maximum(at["bytes"] / at["ranks"], 1.0))
    pair = within & (at["ranks"] == 2)
    value = prior * np.exp(np.where(pair, np.interp(each, points[:, 0], points[:, 1]), 0.0))
    inside_sizes = (each >= points[0, 0] - 0.5) & (each <= points[-1, 0] + 0.5)
    direct = pair & inside_sizes & sibling.same
    spread = spread_of(fit, "learned", op, at, device)
    spread = np.where(direct, spread, np.where(within & inside_sizes, 2.0, 3.0) * spread)
    floor = datasheet_bound(op, at, device)
    alone = np.maximum(value, floor)
    value = with_host(op, alone, at, sibling.calibration)
    spread = np.where(value > alone, np.maximum(spread, fit.spreads.get("host", {}).get("", 0.0)), spread)
    value = np.where((at["ranks"] > 1) & (at["bytes"] > 0), value, prior)
    return interval(value, spread, np.where(direct, Evidence.INTERPOLATED, Evidence.EXTRAPOLATED), floor)
