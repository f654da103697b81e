"""Fits collectives: a link's α, β and half size from measured calls, and the curve that is left over bytes a rank.

Two ranks tell a link's latency, set-up and ramp. The share of the datasheet that large groups reach is theirs to tell
(nccl-tests on eight), so it is held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from costmodels.kernel_models.fitted import Calibration
from costmodels.kernel_models.groups import group_of, quantiles
from costmodels.kernel_models.operations import COLLECTIVES
from costmodels.kernel_models.roofline import collective_prior
from costmodels.kernel_models.samples import Sample
from costmodels.kernel_models.symbols import kernel_symbols
from spaces.columns import FloatArray
from spaces.hardware import find_device

_RANKS = 2
_QUICK = 2.0**18  # bytes below which an eager call is the host's time
_NAMES = ("latency", "setup", "half_size")
_LOW, _HIGH = np.log([2e-7, 1e-6, 5e4]), np.log([5e-6, 2e-5, 4e7])

Curves = Mapping[str, tuple[tuple[float, float], ...]]


def fit_link(many: Sequence[Sample]) -> dict[str, float]:
    """`latency` s, `setup` s and `half_size` B of the inner tier that fit the measured calls best, the share held."""

    def error(logs: NDArray[np.float64]) -> FloatArray:
        link = {f"link.inner.{name}": float(value) for name, value in zip(_NAMES, np.exp(logs), strict=True)}
        parts = []
        for sample in many:
            symbols = kernel_symbols(find_device(sample.device)) | link
            parts.append(np.log(collective_prior(sample.op, sample.at, symbols) / sample.time))
        return np.concatenate(parts)

    start = np.log([8e-7, 5e-6, 1e6])
    found = least_squares(error, start, bounds=(_LOW, _HIGH), loss="soft_l1", f_scale=0.1, diff_step=[1e-3] * len(start))
    return {name: float(value) for name, value in zip(_NAMES, np.exp(found.x), strict=True)}


def fit_curves(many: Sequence[Sample]) -> Curves:
    """Log of measured over α–β time at every measured size, by kind: (log2 bytes a rank, residual), sizes ascending.

    At each size the mean over the devices, of which one that was not measured there stands on the line between its neighbours:
    else a curve would step between devices where only one of them was asked.
    """
    own: dict[str, dict[str, tuple[FloatArray, FloatArray]]] = {}
    for sample in many:
        symbols = kernel_symbols(find_device(sample.device))
        log = np.log(sample.time / collective_prior(sample.op, sample.at, symbols))
        each = _bytes_a_rank(sample)
        sizes = np.unique(each)
        middle = np.array([np.median(log[each == size]) for size in sizes])
        own.setdefault(sample.op, {})[sample.device] = (sizes, middle)
    return {op: _mean_curve(tuple(devices.values())) for op, devices in own.items()}


def _mean_curve(curves: Sequence[tuple[FloatArray, FloatArray]]) -> tuple[tuple[float, float], ...]:
    sizes = np.unique(np.concatenate([own for own, _ in curves]))
    at = np.stack([np.interp(sizes, own, value, left=np.nan, right=np.nan) for own, value in curves])
    return tuple((round(float(x), 4), round(float(y), 5)) for x, y in zip(sizes, np.nanmean(at, axis=0), strict=True))


def curve_time(sample: Sample, curves: Curves) -> FloatArray:
    """Seconds of a sample by α–β and a curve, shape (n,)."""
    points = np.asarray(curves[sample.op])
    prior = collective_prior(sample.op, sample.at, kernel_symbols(find_device(sample.device)))
    return np.asarray(prior * np.exp(np.interp(_bytes_a_rank(sample), points[:, 0], points[:, 1])))


def leave_sizes_out(many: Sequence[Sample]) -> list[tuple[Sample, FloatArray, FloatArray]]:
    """(sample, α–β seconds, seconds by the curve without the row's own size) for each kind."""
    found = []
    for sample in many:
        sizes = _bytes_a_rank(sample)
        learned = np.zeros(len(sample))
        for i in range(len(sample)):
            others = [s.take(_bytes_a_rank(s) != sizes[i]) for s in many if s.op == sample.op]
            learned[i] = curve_time(sample.take(np.array([i])), fit_curves(others))[0]
        found.append((sample, collective_prior(sample.op, sample.at, kernel_symbols(find_device(sample.device))), learned))
    return found


def host_seconds(eager: Sequence[Sample]) -> tuple[dict[str, float], float]:
    """Seconds a small call from Python takes, by kind and '' for any other, and the 90 % quantile of |log error| of that.

    The processor that issues a call is not the device's: sessions of one device differ by half. So the kinds' geometric
    means over all devices stand for each of them.
    """
    small = [sample.take(sample.at["bytes"] <= _QUICK) for sample in eager]
    middle: dict[str, list[float]] = {}
    for sample in small:
        if len(sample):
            middle.setdefault(sample.op, []).append(float(np.log(np.median(sample.time))))
    found = {op: float(np.exp(np.mean(logs))) for op, logs in middle.items()}
    if not found:
        return {}, 0.0
    off = np.concatenate([np.abs(np.log(sample.time / found[sample.op])) for sample in small if len(sample)])
    return found | {"": float(np.median(list(found.values())))}, quantiles(off, np.zeros(len(off)))[""]


def errors(held: Sequence[tuple[Sample, FloatArray, FloatArray]]) -> dict[str, tuple[FloatArray, NDArray[np.str_]]]:
    """|log error| and group of every row, by model."""
    groups = np.concatenate([group_of(s.op, s.at, s.symbols) for s, _, _ in held])
    return {
        "roofline": (np.concatenate([np.abs(np.log(prior / s.time)) for s, prior, _ in held]), groups),
        "learned": (np.concatenate([np.abs(np.log(curve / s.time)) for s, _, curve in held]), groups),
    }


def two_ranks(many: Sequence[Sample]) -> list[Sample]:
    """The rows between two ranks of one domain, of the kinds there is a model for."""
    kept = [s.take((s.at["ranks"] == _RANKS) & (s.at["ranks_per_node"] >= _RANKS)) for s in many if s.op in COLLECTIVES]
    return [sample for sample in kept if len(sample)]


def measured_links(many: Sequence[Sample], host: Mapping[str, float], figures: Sequence[str]) -> dict[str, Calibration]:
    """The devices whose links were measured, with the host's time by kind."""
    names = dict.fromkeys(sample.device for sample in many)
    found = {}
    for name in names:
        symbols = next(sample.symbols for sample in many if sample.device == name)
        found[name] = Calibration(symbols={figure: symbols[figure] for figure in figures}, variants={}, host=host)
    return found


def _bytes_a_rank(sample: Sample) -> FloatArray:
    return np.asarray(np.log2(np.maximum(sample.at["bytes"] / sample.at["ranks"], 1.0)))
