"""Measured rows turned into what the fits read: operator, prepared shapes, seconds, and the group a fold must leave out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.kernel_models.forms import prepared, variant
from costmodels.kernel_models.operations import TEXT, DeviceSymbols, Shapes, dimensions, family_of
from costmodels.measurements import Measurements, Rows
from spaces.columns import FloatArray
from spaces.hardware import UnknownDevice, find_device

_UNUSED_CACHE = "sustained"  # held for seconds until the clocks fall: another question than a kernel's time


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """n measured kernels of one operator on one device.

    `at` holds prepared shapes; `time` seconds, `spread` the relative interquartile range of the repeats, `variant` the set
    of parameters of each, `group` what a held-out fold leaves out together; all of shape (n,).
    """

    op: str
    device: str
    symbols: DeviceSymbols
    at: Shapes
    time: FloatArray
    spread: FloatArray
    variant: NDArray[Any]
    group: NDArray[Any]

    def __len__(self) -> int:
        return len(self.time)

    def take(self, rows: NDArray[Any]) -> Sample:
        """The rows of a mask or of indices."""
        return Sample(
            op=self.op,
            device=self.device,
            symbols=self.symbols,
            at={name: values[rows] for name, values in self.at.items()},
            time=self.time[rows],
            spread=self.spread[rows],
            variant=self.variant[rows],
            group=self.group[rows],
        )


def samples(data: Measurements, family: str, launch: str = "graph") -> list[Sample]:
    """The rows of a family that its model is fitted on, one sample an operator and device; devices must be catalogued."""
    found = []
    for rows in data.of(family):
        try:
            symbols = find_device(rows.device).symbols()
        except UnknownDevice:
            continue  # a machine without a datasheet (a CPU run) teaches nothing about others
        words = np.asarray(rows.columns["op"], dtype=np.str_)
        for op in np.unique(words).tolist():
            if family_of(op) != family:
                continue
            some = rows.take((words == op) & (rows.columns["launch"] == launch))
            some = some.take(some.columns["cache"] != _UNUSED_CACHE) if "cache" in some.columns else some
            if some.n:
                found.append(_sample(op, some, symbols))
    return found


def _sample(op: str, rows: Rows, symbols: DeviceSymbols) -> Sample:
    shapes = {name: rows.columns[name] for name in (*dimensions(op), *TEXT, "groups") if name in rows.columns}
    at = prepared(op, shapes, symbols)
    spread = np.nan_to_num(np.asarray(rows.columns.get("spread", np.zeros(rows.n)), dtype=np.float64))
    return Sample(
        op=op,
        device=rows.device,
        symbols=symbols,
        at=at,
        time=rows.time,
        spread=spread,
        variant=variant(op, at, symbols),
        group=_group(op, at),
    )


def _group(op: str, at: Shapes) -> NDArray[Any]:
    """What a fold leaves out together: a site (n, k) whichever way round, a kind of heads, a size."""
    family = family_of(op)
    if family == "gemm":
        # weight gradients have the site in m and n, data gradients have it turned
        first = np.where(at["layout"] == "wgrad", at["m"], at["k"])
        return _words(np.minimum(at["n"], first), np.maximum(at["n"], first))
    if family == "attention":
        return _words(at["heads"], at["kv_heads"], at["head_dim"])
    return _words(at["rows"] * at["cols"]) if family == "pointwise" else _words(at["bytes"])


def _words(*numbers: FloatArray) -> NDArray[Any]:
    return np.array(["x".join(f"{value:.0f}" for value in row) for row in zip(*numbers, strict=True)], dtype=np.str_)


def folds(many: Sequence[Sample], count: int, seed: int = 0) -> list[NDArray[np.int64]]:
    """A fold number for every row of every sample; rows of one group, on whatever device, share a fold."""
    groups = sorted({group for sample in many for group in sample.group.tolist()})
    turn = np.random.default_rng(seed).permutation(len(groups)) % count
    fold = dict(zip(groups, turn.tolist(), strict=True))
    return [np.array([fold[group] for group in sample.group.tolist()], dtype=np.int64) for sample in many]
