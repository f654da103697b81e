"""Kernels of a step as calls of a kernel model: asked once per distinct shape, summed into tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.kernel_models.operations import TEXT
from costmodels.kernel_models.protocol import KernelModel, ManyDevices
from costmodels.kernels import smooth_max
from spaces.columns import FloatArray, IntArray, Value


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One operator of a step for c engines and the points of a grid; every array broadcasts to (c, *grid).

    Seconds = times · min(cubic norm of the model's answer and `floor`, `cap`): `floor` is work the model does not know of
    (dequantised products), `cap` a faster way to do the same (a server's own all-reduce). Where `times` is 0 there is no call.
    An empty `op` is no kernel of the model: `floor` says it all.
    """

    op: str
    shape: Mapping[str, Value] = field(default_factory=dict)
    times: Value = 1.0
    floor: Value = 0.0
    cap: Value = np.inf


def total_time(
    calls: Iterable[Call], grid: tuple[int, ...], devices: Sequence[Mapping[str, float]], device: IntArray, model: KernelModel
) -> FloatArray:
    """Seconds of all calls together, (c, *grid); `device` (c,) indexes `devices`, whose symbols the model reads."""
    whole = (len(device), *grid)
    total = np.zeros(whole)
    named: dict[str, list[Call]] = {}
    for call in calls:
        named.setdefault(call.op, []).append(call)
    for op, group in named.items():
        if not op:
            for call in group:
                total += np.broadcast_to(call.times * np.minimum(call.floor, call.cap), whole)
            continue
        answers = _answers(op, group, whole, devices, device, model)
        for call, answer in zip(group, answers, strict=True):
            total += call.times * np.minimum(smooth_max(answer, call.floor) if np.any(call.floor) else answer, call.cap)
    return total


def _answers(
    op: str,
    group: Sequence[Call],
    whole: tuple[int, ...],
    devices: Sequence[Mapping[str, float]],
    device: IntArray,
    model: KernelModel,
) -> list[FloatArray]:
    """The model's seconds for each call of one operator, (c, *grid) each."""
    names = sorted({name for call in group for name in call.shape})
    words = {name: _codes(group, name) for name in names if name in TEXT}
    axes = (len(device), *([1] * (len(whole) - 1)))
    wanted = np.stack([np.broadcast_to(np.asarray(call.times) > 0, whole) for call in group]).ravel()
    coded = [[_coded(call, name, words) for call in group] for name in names] + [[device.reshape(axes)] * len(group)]
    keys = np.stack([np.stack([np.broadcast_to(one, whole) for one in column]).ravel()[wanted] for column in coded])
    _, first, index = np.unique(_hashed(keys), return_index=True, return_inverse=True)
    rows = keys[:, first]
    shapes: dict[str, NDArray[Any]] = {
        name: words[name][rows[i].astype(np.int64)] if name in words else rows[i] for i, name in enumerate(names)
    }
    seconds = _seconds(op, shapes, devices, rows[-1].astype(np.int64), model)
    answer = np.zeros(len(group) * int(np.prod(whole)))
    answer[wanted] = seconds[index]
    return list(answer.reshape((len(group), *whole)))


def _seconds(
    op: str, shapes: Mapping[str, NDArray[Any]], devices: Sequence[Mapping[str, float]], device: IntArray, model: KernelModel
) -> FloatArray:
    """The model's seconds of rows on `devices[device]`, all at once where it can, else a device at a time."""
    if len(devices) > 1 and isinstance(model, ManyDevices):
        return model.seconds_on(op, shapes, devices, device)
    seconds = np.empty(len(device))
    for number in np.unique(device).tolist():
        own = np.flatnonzero(device == number)
        seconds[own] = model.predict(op, {name: values[own] for name, values in shapes.items()}, devices[number]).value
    return seconds


def _hashed(keys: FloatArray) -> NDArray[np.uint64]:
    """One number for each column of `keys` (names, m): alike where they are, else different but for a chance of 2^-64."""
    code = np.zeros(keys.shape[1], np.uint64)
    for column in np.ascontiguousarray(keys, np.float64).view(np.uint64):
        if np.any(column != column[:1]):
            code = (code ^ column) * np.uint64(0x9E3779B97F4A7C15)
            code ^= code >> np.uint64(29)
    return code


def _codes(group: Sequence[Call], name: str) -> NDArray[np.str_]:
    """The words a text column takes."""
    return np.unique(np.concatenate([np.asarray(call.shape.get(name, ""), np.str_).ravel() for call in group]))


def _coded(call: Call, name: str, words: Mapping[str, NDArray[np.str_]]) -> Value:
    if name not in words:
        return np.asarray(call.shape.get(name, 1.0), np.float64)  # one group where none are named
    return np.searchsorted(words[name], np.asarray(call.shape.get(name, ""), np.str_))
