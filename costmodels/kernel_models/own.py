"""Somebody's own measurements over a model: measured shapes as measured, others by the nearest measured shapes' ratios.

On a device that was measured, log(measured / predicted) of the operator's own rows is averaged around a shape, near rows more
than far ones, and shrunk to nothing where there are few. Nothing is fitted or kept: what is read is what is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from costmodels.kernel_models.exact import LEAST, Known, known_of, measured, same_device, told_words
from costmodels.kernel_models.forms import prepared
from costmodels.kernel_models.groups import quantiles
from costmodels.kernel_models.operations import DeviceSymbols, Shapes, dimensions
from costmodels.kernel_models.protocol import KernelModel, KernelTime
from costmodels.kernel_models.samples import Sample, samples
from costmodels.kernel_models.symbols import kernel_symbols
from costmodels.measurements import BadMeasurements, Measurements, content_hash, copied_rows, data_files, read
from costmodels.metrics import Evidence
from spaces.columns import FloatArray
from spaces.hardware import find_device

_OCTAVES = 1.0  # width of the neighbourhood, in powers of two of each dimension
_DOUBT = 2.0  # rows that say the ratio is 1, in a neighbourhood
_ELSEWHERE = 0.2  # weight of a row of another format, layout, kernel or cache state
_NEAR = 1.5  # octaves from the nearest measured shape within which an answer is interpolated
_FAMILIES = ("gemm", "attention", "pointwise")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ratios:
    """Measured over predicted of one operator's rows on one device: words (m, w), log2 sizes (m, d), log ratio (m,)."""

    words: NDArray[np.str_]
    sizes: FloatArray
    log: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Own:
    """A kernel model corrected by measurements of `devices`; other devices get the model's own answer."""

    model: KernelModel
    devices: Mapping[str, DeviceSymbols]
    known: Known
    ratios: Mapping[tuple[str, str], Ratios]
    spread: Mapping[tuple[str, str], float]

    @property
    def reads(self) -> frozenset[str]:
        """As the model it corrects."""
        return self.model.reads

    def predict(self, op: str, shapes: Shapes, device: DeviceSymbols) -> KernelTime:
        """As the protocol says."""
        time = self.model.predict(op, shapes, device)
        name = next((name for name, symbols in self.devices.items() if same_device(device, symbols)), None)
        if name is None or (name, op) not in self.ratios:
            return time
        at = prepared(op, shapes, device)
        log, near = _around(self.ratios[name, op], op, at)
        half = np.maximum(self.spread[name, op], LEAST)
        value = time.value * np.exp(log)
        evidence = np.where(near, Evidence.INTERPOLATED, np.maximum(time.evidence, Evidence.INTERPOLATED))
        corrected = KernelTime(
            value=value,
            low=np.where(near, value * np.exp(-half), time.low * np.exp(log)),
            high=np.where(near, value * np.exp(half), time.high * np.exp(log)),
            evidence=np.asarray(evidence, dtype=np.int8),
        )
        return measured(op, shapes, device, corrected, self.known.get(name, {}).get(op, {}))


def _described(op: str, at: Shapes) -> tuple[NDArray[np.str_], FloatArray]:
    words = np.column_stack(told_words(op, at))
    return words, np.column_stack([np.log2(at[name]) for name in dimensions(op)])


def _around(ratios: Ratios, op: str, at: Shapes, *, but_itself: bool = False) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Log ratio around each row, and whether a measured shape of the same words is near; shape (n,) each.

    `but_itself`: the rows are the ratios' own, and none is its own neighbour.
    """
    words, sizes = _described(op, at)
    far = np.sqrt(((sizes[:, None, :] - ratios.sizes[None, :, :]) ** 2).sum(axis=2))
    alike = np.all(words[:, None, :] == ratios.words[None, :, :], axis=2)
    weight = np.exp(-0.5 * (far / _OCTAVES) ** 2) * np.where(alike, 1.0, _ELSEWHERE)
    usual = float(np.median(ratios.log)) * len(ratios.log) / (len(ratios.log) + _DOUBT)
    if but_itself:
        np.fill_diagonal(weight, 0.0)
        np.fill_diagonal(far, np.inf)
    near = np.any((far <= _NEAR) & alike, axis=1)
    return (weight @ ratios.log + _DOUBT * usual) / (weight.sum(axis=1) + _DOUBT), near


def own_model(folder: Path, model: KernelModel) -> Own:
    """The model under the measurements in `folder` (as `calibrate` writes them). Raises BadMeasurements, naming the rows."""
    data = checked_measurements(folder)
    devices: dict[str, DeviceSymbols] = {}
    ratios: dict[tuple[str, str], Ratios] = {}
    spread: dict[tuple[str, str], float] = {}
    every: list[Sample] = []
    for family in _FAMILIES:
        for sample in samples(data, family):
            every.append(sample)
            key = (sample.device, sample.op)
            devices[sample.device] = kernel_symbols(find_device(sample.device))
            predicted = model.predict(sample.op, sample.at, devices[sample.device]).value
            words, sizes = _described(sample.op, sample.at)
            ratios[key] = Ratios(words=words, sizes=sizes, log=np.log(sample.time / predicted))
            log, _near = _around(ratios[key], sample.op, sample.at, but_itself=True)
            spread[key] = quantiles(np.abs(ratios[key].log - log), np.full(len(log), ""))[""]
    return Own(model=model, devices=devices, known=known_of(every), ratios=ratios, spread=spread)


def checked_measurements(folder: Path) -> Measurements:
    """What a folder holds. Raises BadMeasurements: rows that cannot be true, or the project's own under another name."""
    return _checked(folder, content_hash(data_files(folder)))


@cache
def _checked(folder: Path, _content: str) -> Measurements:
    data = read(folder)
    copied = copied_rows(data)
    if copied:
        raise BadMeasurements(copied)
    return data
