"""Errors on kernels that a fit has not seen: groups left out (sites, kinds of heads, sizes), and whole devices left out.

Never random rows: repeats and neighbours of a shape would be on both sides. Intervals come from here, and so does the
table of `benchmarks/kernels.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.kernel_models import features
from costmodels.kernel_models.boosting import fit_residual
from costmodels.kernel_models.fitted import SYMBOLS, Calibration
from costmodels.kernel_models.forms import FORMS, Parameters, prior_time
from costmodels.kernel_models.groups import group_of
from costmodels.kernel_models.operations import family_of
from costmodels.kernel_models.regression import fit_parameters
from costmodels.kernel_models.roofline import roofline_time
from costmodels.kernel_models.samples import Sample, folds
from costmodels.kernel_models.siblings import sibling_of, transferred
from costmodels.kernel_models.symbols import kernel_symbols
from costmodels.kernel_models.trees import read_trees
from spaces.columns import FloatArray
from spaces.hardware import find_device

FOLDS = 8
MODELS = ("roofline", "calibrated", "learned")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldOut:
    """Predictions for rows that were not in the fit: `seconds[model]` and the measured `time`, shape (n,) each."""

    sample: Sample
    seconds: Mapping[str, FloatArray]

    def error(self, model: str) -> FloatArray:
        """log(predicted / measured), shape (n,)."""
        return np.log(self.seconds[model] / self.sample.time)

    @property
    def group(self) -> NDArray[Any]:
        """The rows' groups of like error."""
        return group_of(self.sample.op, self.sample.at, self.sample.symbols)


def fit_devices(many: Sequence[Sample]) -> dict[str, dict[str, Parameters]]:
    """Parameters of each operator variant on each device: from the form's own start and from those of the devices before."""
    found: dict[str, dict[str, Parameters]] = {}
    for sample in many:
        form = FORMS[_family(sample)]
        for kind in np.unique(sample.variant).tolist():
            some = sample.take(sample.variant == kind)
            starts = [None, *(variants[kind] for variants in found.values() if kind in variants)]
            fits = [fit_parameters(form, sample.op, some.at, sample.symbols, some.time, start) for start in starts]
            errors = [np.abs(np.log(form.time(sample.op, some.at, sample.symbols, fit) / some.time)).mean() for fit in fits]
            found.setdefault(sample.device, {})[kind] = fits[int(np.argmin(errors))]
    return found


def fit_trees(many: Sequence[Sample], devices: Mapping[str, Mapping[str, Parameters]], **settings: Any) -> str:
    """The residual of all rows on their devices' forms, as lightgbm text; rows whose repeats disagree weigh less."""
    x, y, weight = [], [], []
    for sample in many:
        prior = prior_time(sample.op, sample.at, sample.symbols, devices[sample.device])
        x.append(features.matrix(sample.op, sample.at, sample.symbols, prior))
        y.append(np.log(sample.time / prior))
        weight.append(1.0 / (1.0 + (sample.spread / 0.03) ** 2))
    family = _family(many[0])
    return fit_residual(
        family, np.concatenate(x), np.concatenate(y), features.names(family), np.concatenate(weight), **settings
    )


def leave_groups_out(many: Sequence[Sample], count: int = FOLDS, seed: int = 0) -> list[HeldOut]:
    """Every row predicted by a fit without its group on any device, by all models."""
    fold = folds(many, count, seed)
    seconds = [{model: np.full(len(sample), np.nan) for model in MODELS} for sample in many]
    for turn in range(count):
        taught = [sample.take(own != turn) for sample, own in zip(many, fold, strict=True)]
        taught = [sample for sample in taught if len(sample)]
        devices = fit_devices(taught)
        trees = read_trees(fit_trees(taught, devices))
        for sample, own, predicted in zip(many, fold, seconds, strict=True):
            rows = np.flatnonzero(own == turn)
            known = np.isin(sample.variant[rows], list(devices.get(sample.device, {})))
            rows = rows[known]
            if len(rows):
                some = sample.take(rows)
                prior = prior_time(sample.op, some.at, sample.symbols, devices[sample.device])
                predicted["calibrated"][rows] = prior
                predicted["learned"][rows] = prior * np.exp(
                    trees.predict(features.matrix(sample.op, some.at, sample.symbols, prior))
                )
    return [_held(sample, predicted) for sample, predicted in zip(many, seconds, strict=True)]


def leave_device_out(many: Sequence[Sample], device: str) -> list[HeldOut]:
    """The device's rows predicted from the other devices' measurements and its datasheet; empty when it has no sibling.

    `calibrated` is the sibling's parameters on this device's datasheet, `learned` times the sibling's residual.
    """
    taught = [sample for sample in many if sample.device != device]
    if not taught:
        return []
    devices = fit_devices(taught)
    symbols = {sample.device: sample.symbols for sample in taught}
    measured = {name: Calibration(symbols=symbols[name], variants=variants) for name, variants in devices.items()}
    sibling = sibling_of(find_device(device).symbols(), measured)
    if sibling is None:
        return []
    return _carried([sample for sample in many if sample.device == device], sibling.calibration, fit_trees(taught, devices))


def carry_over(taught: Sequence[Sample], asked: Sequence[Sample]) -> list[HeldOut]:
    """Rows of one device predicted from those of another, of whatever generation, and the two datasheets.

    What a shipped model would not do, for a generation's kernels are its own; the columns are those of `leave_device_out`.
    """
    devices = fit_devices(taught)
    (name,) = devices
    calibration = Calibration(symbols=taught[0].symbols, variants=devices[name])
    return _carried(asked, calibration, fit_trees(taught, devices))


def _carried(asked: Iterable[Sample], calibration: Calibration, residual: str) -> list[HeldOut]:
    """Rows by another device's parameters on their own datasheet, and by its residual, lightgbm text, at the same shapes."""
    trees = read_trees(residual)
    theirs, found = calibration.symbols, []
    for sample in asked:
        some = sample.take(np.isin(sample.variant, list(calibration.variants)))
        if not len(some):
            continue
        here = prior_time(some.op, some.at, some.symbols, transferred(calibration.variants, some.symbols, theirs))
        there = prior_time(some.op, some.at, theirs, calibration.variants)
        learned = here * np.exp(trees.predict(features.matrix(some.op, some.at, theirs, there)))
        found.append(_held(some, {"calibrated": here, "learned": learned}))
    return found


def _held(sample: Sample, seconds: Mapping[str, FloatArray]) -> HeldOut:
    """With the roofline's answer beside; rows that no fold could predict (a variant of one group) are dropped."""
    rows = np.flatnonzero(np.isfinite(seconds["learned"]))
    some = sample.take(rows)
    datasheet = roofline_time(some.op, some.at, kernel_symbols(find_device(some.device)))
    return HeldOut(sample=some, seconds={"roofline": datasheet} | {m: seconds[m][rows] for m in MODELS[1:]})


def calibrations(many: Sequence[Sample], devices: Mapping[str, Mapping[str, Parameters]]) -> dict[str, Calibration]:
    """Fitted devices with the datasheet figures that kernels depend on."""
    symbols = {sample.device: {name: sample.symbols[name] for name in SYMBOLS} for sample in many}
    return {name: Calibration(symbols=symbols[name], variants=variants) for name, variants in devices.items()}


def _family(sample: Sample) -> str:
    return family_of(sample.op)
