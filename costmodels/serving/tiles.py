"""Products as a server's own kernels run them: in waves of tiles that each take as long as their contraction is deep.

The kernel model learned cuBLASLt's, which cut the contraction of small products and choose among many tiles. CUTLASS in servers
takes one tile for a range of rows: products that do not fill the device with such tiles wait for the slowest, whatever memory
could deliver (costmodels/data/product_tiles.yaml).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from costmodels.constants import DATA
from costmodels.kernels import smooth_max
from costmodels.serving.calls import Call
from spaces.columns import FloatArray, Value
from spaces.expressions import SymbolTable
from spaces.facts import facts_in

MEASURED = "kernel.tiles_measured"
"""Symbol: whether the device is of the generation that these kernels were measured on (0 or 1)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tiles:
    """Classes of products by rows, arrays (classes,): a product of up to `up_to` rows runs in tiles of `rows` × `columns`, each
    made by `processors`; seconds `start` a product and `pace` a wave and element of the contraction; `times` the kernel model's
    time for what memory bounds.
    """

    up_to: FloatArray
    rows: FloatArray
    columns: FloatArray
    processors: FloatArray
    start: FloatArray
    pace: FloatArray
    times: FloatArray


def tile_time(tiles: Tiles, at: SymbolTable, m: Value, n: Value, k: Value) -> tuple[Value, Value]:
    """(seconds that a product (m, k)·(k, n) takes for its waves, times of the kernel model's answer beside them).

    Of a tile's pace what its work takes at the peak rate follows the device's; the rest is the same on any.
    """
    own = np.minimum(np.searchsorted(tiles.up_to, m), len(tiles.up_to) - 1)
    rows, columns, processors = tiles.rows[own], tiles.columns[own], tiles.processors[own]
    units = np.asarray(at["device.compute_units"], np.float64)
    waves = np.ceil(np.ceil(m / rows) * np.ceil(n / columns) / np.maximum(units // processors, 1.0))
    measured = _facts()["measured"]
    slower = units / measured["compute_units"] * measured["fp8"] / np.maximum(at["device.matrix_flops.fp8"], 1.0)
    work = np.minimum(2.0 * rows * columns / processors * measured["compute_units"] / measured["fp8"], tiles.pace[own])
    return tiles.start[own] + waves * k * (tiles.pace[own] + work * (slower - 1.0)), tiles.times[own]


def tiled(call: Call, tiles: Tiles, at: SymbolTable, m: Value, n: Value, k: Value, where: Value) -> Call:
    """A product's call as the server runs it, where `where` says so; elsewhere as it is."""
    seconds, times = tile_time(tiles, at, m, n, k)
    floor = np.where(where, smooth_max(call.floor, seconds / times), call.floor)
    return replace(call, times=call.times * np.where(where, times, 1.0), floor=floor)


def tiles_of(stack: str) -> Mapping[str, Tiles]:
    """The classes of a stack's dense products by kind of scale (fp8, fp8_block); none where its kernels are the model's."""
    entries = _facts()["stacks"].get(stack, {})
    return {kind: _tiles(stack, kind) for kind in entries if kind != "source"}


def measured_on(generation: str) -> float:
    """Whether these kernels were measured on a generation of devices, 0 or 1."""
    return float(generation == _facts()["generation"])


@cache
def _tiles(stack: str, kind: str) -> Tiles:
    rows = _facts()["stacks"][stack][kind]
    return Tiles(**{name: np.array([float(row[name]) for row in rows]) for name in Tiles.__dataclass_fields__})


@cache
def _facts() -> dict[str, Any]:
    with (DATA / "product_tiles.yaml").open(encoding="utf-8") as file:
        return dict(facts_in(file.read()))
