"""Kernels of a step as calls of a kernel model: asked once per distinct shape, summed into tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.kernel_models.operations import TEXT
from costmodels.kernel_models.protocol import KernelModel, ManyDevices, SecondsAlone
from costmodels.kernels import smooth_max
from spaces.columns import FloatArray, IntArray, Value


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One operator of a step for c engines and the points of a grid; every array broadcasts to (c, *grid).

    Seconds = times · min(cubic norm of the model's answer and `floor`, `cap`): `floor` is work the model does not know of
    (dequantised products), `cap` a faster way to do the same (a sum in the switch). Where `times` is 0 there is no call.
    `own` is what the server runs in the kernel's place, be it faster or not (its own all-reduce); inf where it has nothing.
    An empty `op` is no kernel of the model: `floor` says it all.
    """

    op: str
    shape: Mapping[str, Value] = field(default_factory=dict)
    times: Value = 1.0
    floor: Value = 0.0
    cap: Value = np.inf
    own: Value = np.inf


def repeated(call: Call, count: Value) -> Call:
    """The same call so many times as often."""
    return Call(op=call.op, shape=call.shape, times=call.times * count, floor=call.floor, cap=call.cap, own=call.own)


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
            seconds = np.minimum(smooth_max(answer, call.floor) if np.any(call.floor) else answer, call.cap)
            total += call.times * np.where(np.isfinite(call.own), call.own, seconds)
    return total


def _answers(
    op: str,
    group: Sequence[Call],
    whole: tuple[int, ...],
    devices: Sequence[Mapping[str, float]],
    device: IntArray,
    model: KernelModel,
) -> list[FloatArray]:
    """The model's seconds for each call of one operator, (c, *grid) each.

    Engines that ask for the same shapes (the same plan on other devices) are looked at once: shapes are found for one engine
    of each kind, and every device is asked for those of the kinds it has.
    """
    names = sorted({name for call in group for name in call.shape})
    words = {name: _codes(group, name) for name in names if name in TEXT}
    columns = [[_coded(call, name, words) for call in group] for name in names]
    wants = [np.asarray(call.times) > 0 for call in group]
    some, kind = _kinds([*(one for column in columns for one in column), *wants], whole)
    grid = (len(some), *whole[1:])
    wanted = np.stack([np.broadcast_to(_of(want, some, whole), grid) for want in wants]).ravel()
    keys = np.stack(
        [np.stack([np.broadcast_to(_of(one, some, whole), grid) for one in column]).ravel()[wanted] for column in columns]
    )
    _, first, found = np.unique(_hashed(keys), return_index=True, return_inverse=True)
    shapes: dict[str, NDArray[Any]] = {
        name: words[name][keys[i, first].astype(np.int64)] if name in words else keys[i, first] for i, name in enumerate(names)
    }
    index = np.full(len(wanted), len(first), np.int64)  # what is not wanted is the last shape, which takes no time
    index[wanted] = found
    places = index.reshape(len(group), len(some), int(np.prod(whole[1:])))
    asked, shape = np.nonzero(_needed(places, kind, device, len(devices), len(first)))
    times = np.zeros((len(devices), len(first) + 1))
    rows = {name: _taken(values, shape, alike=len(words.get(name, ())) == 1) for name, values in shapes.items()}
    times[asked, shape] = _seconds(op, rows, devices, asked, model)
    flat, starts = times.ravel(), device * times.shape[1]
    return [flat[starts[:, None] + own[kind]].reshape(whole) for own in places]


def _needed(places: IntArray, kind: IntArray, device: IntArray, devices: int, shapes: int) -> NDArray[np.bool_]:
    """Which device is to be asked for which shape, (devices, shapes): those that its engines' kinds use."""
    if devices == 1:
        return np.ones((1, shapes), np.bool_)
    needs = np.zeros((devices, shapes + 1), np.bool_)
    order = np.argsort(kind, kind="stable")
    for one, own in enumerate(np.split(order, np.cumsum(np.bincount(kind))[:-1])):
        needs[np.ix_(_numbers(device[own], devices), _numbers(places[:, one], shapes + 1))] = True
    return needs[:, :-1]


def _numbers(codes: IntArray, most: int) -> IntArray:
    """The distinct codes, all below `most`."""
    there = np.zeros(most, np.bool_)
    there[codes] = True
    return np.flatnonzero(there)


def _taken(values: NDArray[Any], rows: IntArray, *, alike: bool) -> NDArray[Any]:
    """`values[rows]`; a word that is the same in all of them is held once."""
    return np.broadcast_to(values[:1], rows.shape) if alike and len(rows) else values[rows]


def _kinds(arrays: Sequence[NDArray[Any]], whole: tuple[int, ...]) -> tuple[IntArray, IntArray]:
    """(one engine of each kind, the kind of every engine (c,)): engines for which all the arrays say the same."""
    own = [one for one in arrays if one.ndim == len(whole) and len(one) > 1]
    if not own:
        return np.zeros(min(whole[0], 1), np.int64), np.zeros(whole[0], np.int64)
    keys = np.concatenate([one.reshape(len(one), -1).T.astype(np.float64) for one in own])
    _, first, kind = np.unique(_hashed(keys), return_index=True, return_inverse=True)
    return first, kind


def _of(array: NDArray[Any], engines: IntArray, whole: tuple[int, ...]) -> NDArray[Any]:
    """What an array that broadcasts to (c, *grid) says of some engines."""
    return array[engines] if array.ndim == len(whole) and len(array) > 1 else array


def _seconds(
    op: str, shapes: Mapping[str, NDArray[Any]], devices: Sequence[Mapping[str, float]], device: IntArray, model: KernelModel
) -> FloatArray:
    """The model's seconds of rows on `devices[device]`, all at once where it can, else a device at a time."""
    if len(devices) > 1 and isinstance(model, ManyDevices):
        return model.seconds_on(op, shapes, devices, device)
    seconds = np.empty(len(device))
    for number in np.unique(device).tolist():
        own = np.flatnonzero(device == number)
        some = {name: values[own] for name, values in shapes.items()}
        if isinstance(model, SecondsAlone):
            seconds[own] = model.seconds(op, some, devices[number])
        else:
            seconds[own] = model.predict(op, some, devices[number]).value
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


def _coded(call: Call, name: str, words: Mapping[str, NDArray[np.str_]]) -> NDArray[Any]:
    if name not in words:
        return np.asarray(call.shape.get(name, 1.0), np.float64)  # one group where none are named
    return np.searchsorted(words[name], np.asarray(call.shape.get(name, ""), np.str_))
