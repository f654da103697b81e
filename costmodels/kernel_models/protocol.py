"""The protocol of a kernel-time model, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from costmodels.kernel_models.operations import DeviceSymbols, Shapes
from costmodels.metrics import Evidence
from spaces.columns import FloatArray, IntArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KernelTime:
    """Seconds with a 90 % interval and an `Evidence` code for each of n kernels; low ≤ value ≤ high."""

    value: FloatArray
    low: FloatArray
    high: FloatArray
    evidence: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.value)


@runtime_checkable
class KernelModel(Protocol):
    """Predicts the time of one kind of kernel for a batch of shapes on one device.

    Contract: pure (same shapes and device, same bytes out) and stateless; accepts n = 0; every answer is finite, positive,
    and no faster than the device's datasheet allows (`datasheet_bound`); a row's answer does not depend on its batch. A
    model that was fitted on data refuses to use a fit whose data or code have changed.
    """

    @property
    def reads(self) -> frozenset[str]:
        """The device symbols it looks at (`device.*`, `kernel.*`, `link.*`)."""
        ...

    def predict(self, op: str, shapes: Shapes, device: DeviceSymbols) -> KernelTime:
        """Time of `op` for every row of `shapes`, on the device that the symbols describe (SI units).

        `shapes` maps the operator's dimensions to arrays (n,), and words (`dtype`, `implementation`, `cache`, `launch`, …) to
        text arrays (n,); a word left out is its default. Raises ValueError for an unknown operator or a missing dimension.
        """
        ...


@runtime_checkable
class ManyDevices(KernelModel, Protocol):
    """A kernel model that answers for rows on devices of their own at once, as quickly as for rows on one."""

    def seconds_on(self, op: str, shapes: Shapes, devices: Sequence[DeviceSymbols], device: IntArray) -> FloatArray:
        """The seconds of `predict`, (n,), row i on `devices[device[i]]`; all devices bind the same symbols."""
        ...


@runtime_checkable
class SecondsAlone(KernelModel, Protocol):
    """A kernel model that answers more quickly where intervals are not asked for."""

    def seconds(self, op: str, shapes: Shapes, device: DeviceSymbols) -> FloatArray:
        """The seconds of `predict`, (n,)."""
        ...

    def taught_seconds(self, op: str, shapes: Shapes, device: DeviceSymbols) -> FloatArray:
        """The same, NaN for rows that rest on first principles alone."""
        ...


def known_seconds(time: KernelTime) -> FloatArray:
    """The seconds of an answer, (n,), NaN for rows that rest on first principles alone."""
    known = np.isin(time.evidence, (Evidence.MEASURED, Evidence.INTERPOLATED, Evidence.EXTRAPOLATED))
    return np.where(known, time.value, np.nan)


def interval(value: FloatArray, spread: FloatArray, evidence: NDArray[Any], floor: FloatArray) -> KernelTime:
    """`value` with a symmetric interval in log time: value · exp(±spread), never below `floor`; all of shape (n,)."""
    bounded = np.maximum(value, floor)
    low = np.maximum(bounded * np.exp(-spread), floor)
    return KernelTime(value=bounded, low=low, high=bounded * np.exp(spread), evidence=np.asarray(evidence, dtype=np.int8))


def merged(parts: Mapping[str, tuple[NDArray[Any], KernelTime]], n: int) -> KernelTime:
    """Answers for disjoint sets of rows put back together: name -> (row indices, answer)."""
    value, low, high = np.ones(n), np.ones(n), np.ones(n)
    evidence = np.zeros(n, dtype=np.int8)
    for rows, time in parts.values():
        value[rows], low[rows], high[rows], evidence[rows] = time.value, time.low, time.high, time.evidence
    return KernelTime(value=value, low=low, high=high, evidence=evidence)
