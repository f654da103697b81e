"""A matrix product on an accelerator described by its arrays and buffers: cycles, traffic by level, seconds.

Cores share the result's tiles; a core's matrix units share a tile; local memory, shared cache and memory are levels, each with
its own best tiling. Double buffering overlaps the levels (the slowest counts), without it they add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.machines.arrays import array_cycles
from costmodels.machines.tables import constants
from costmodels.machines.tiling import buffer_traffic
from spaces.columns import FloatArray, Value
from spaces.expressions import SymbolTable

TILES: NDArray[np.float64] = np.array([32.0, 64.0, 128.0, 256.0, 512.0])
"""Sides of the tile that a core of up to 4,096 multiply-adds a cycle works on at a time; larger cores take larger tiles."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProductCost:
    """One matrix product on one device, shape (n,): seconds by limit, their overlap, and bytes by level.

    `compute`, `shared`, `memory` are seconds at the clock and bandwidths given; `time` is what they make together;
    `efficiency` the share of the peak rate that `time` reaches.
    """

    time: FloatArray
    compute: FloatArray
    shared: FloatArray
    memory: FloatArray
    shared_bytes: FloatArray
    memory_bytes: FloatArray
    efficiency: FloatArray


def product_cost(
    at: SymbolTable,
    m: Value,
    n: Value,
    k: Value,
    groups: Value = 1.0,
    *,
    element: Value = 2.0,
    rate: Value = 1.0,
    stationary: str = "output",
    clock_share: Value = 1.0,
    double_buffered: bool = True,
) -> ProductCost:
    """Cost of `groups` products (m, k) · (k, n) on the accelerator whose `chip.*` symbols `at` binds.

    `element` bytes an operand's element; `rate` multiply-adds a cycle over those of 16 bits (2 for fp8 where doubled);
    `clock_share` of the boost clock. The tile of a core is the best of TILES x TILES that its local memory holds.
    """
    m, n, k, groups, element, rate, share = np.broadcast_arrays(
        *(np.asarray(value, np.float64) for value in (m, n, k, groups, element, rate, clock_share))
    )
    chip = {name: _lifted(at[f"chip.{name}"], m) for name in _READ}
    rows, columns = chip["array_rows"], chip["array_columns"]
    units = np.maximum(chip["matrix_fma"] / (rows * columns), 1.0)
    scale = np.exp2(np.maximum(np.round(np.log2(np.maximum(chip["matrix_fma"], 1.0) / 4096.0) / 2.0), 0.0))
    ladder = TILES.reshape(-1, *([1] * m.ndim))
    a = np.maximum(ladder[:, None] * scale, rows)
    b = np.maximum(ladder[None, :] * scale, columns)
    a, b = np.minimum(a, np.ceil(m / rows) * rows), np.minimum(b, np.ceil(n / columns) * columns)
    fits = 4.0 * a * b + 2.0 * 16.0 * element * (a + b) <= chip["l1_bytes"] + chip["register_bytes"]
    fits[0, 0] |= ~fits.any(axis=(0, 1))  # the smallest tile is always tried
    tiles = groups * np.ceil(m / a) * np.ceil(n / b)
    split = np.clip(np.floor(chip["cores"] / tiles), 1.0, np.ceil(k / 512.0))  # a long contraction is cut over idle cores
    waves = np.ceil(tiles * split / chip["cores"])
    each = np.ceil(b / np.minimum(units, np.ceil(b / columns)))  # a core's units share the columns of its tile, then its rows
    rest = np.maximum(np.floor(units / np.ceil(b / each)), 1.0)
    cycles = waves * array_cycles(
        stationary, np.ceil(a / rest), each, np.ceil(k / split / rate), rows, columns, double_buffered=double_buffered
    )
    moved = groups * (element * k * (m * np.ceil(n / b) + n * np.ceil(m / a)) + 2.0 * m * n * (2.0 * split - 1.0))
    clock = chip["clock"] * share
    memory_bytes = groups * buffer_traffic(m, n, k, np.maximum(chip["l2_bytes"], chip["cores"] * chip["l1_bytes"]), element)
    port = np.maximum(constants("dataflow")["core_port"], 2.0 * rows) * chip["cores"] * clock
    compute, shared = cycles / clock, moved / port
    memory = np.broadcast_to(memory_bytes / np.maximum(_lifted(at["device.memory_bandwidth"], m), 1.0), compute.shape)
    parts = (compute, shared, memory)
    whole = np.maximum.reduce(parts) if double_buffered else compute + shared + memory
    place = np.argmin(np.where(fits, whole, np.inf).reshape(-1, *m.shape), axis=0)[None]

    def chosen(values: FloatArray) -> FloatArray:
        flat = np.broadcast_to(values, whole.shape).reshape(-1, *m.shape)
        return np.asarray(np.take_along_axis(flat, place, axis=0)[0])

    time = chosen(whole)
    peak = chip["cores"] * chip["matrix_fma"] * rate * clock
    return ProductCost(
        time=time,
        compute=chosen(compute),
        shared=chosen(shared),
        memory=chosen(memory),
        shared_bytes=chosen(moved),
        memory_bytes=memory_bytes,
        efficiency=np.asarray(groups * m * n * k / (time * peak)),
    )


_READ = ("cores", "clock", "matrix_fma", "array_rows", "array_columns", "l1_bytes", "register_bytes", "l2_bytes")


def _lifted(value: Value, like: FloatArray) -> FloatArray:
    return np.asarray(np.broadcast_to(np.asarray(value, np.float64), like.shape))
