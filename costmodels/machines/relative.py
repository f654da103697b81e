"""How an accelerator's arrays and buffers change a kernel's time against the part it descends from.

The part is measured; the design is not. What its dataflow predicts for both, at the same shape, gives factors on the part's
compute and memory time: exactly 1 where nothing on chip was changed, so measured constants stay what they are.
"""

from __future__ import annotations

import numpy as np

from costmodels.machines.cascades import attention_cost
from costmodels.machines.dataflow import ProductCost, product_cost
from spaces.columns import Columns, FloatArray, Value, distinct
from spaces.expressions import SymbolTable
from spaces.hardware.accelerators import Accelerator

BASE = "base."
"""Prefix of the symbols of the part that a design descends from: `base.chip.cores`."""
ON_CHIP = ("cores", "matrix_fma", "array_rows", "array_columns", "l1_bytes", "register_bytes", "l2_bytes", "vector_fma")


def base_symbols(base: Accelerator) -> dict[str, float]:
    """What a design's symbols need beside them to be compared with the part they descend from."""
    at = base.columns()
    return {f"{BASE}{name}": float(at[name][0]) for name in (*(f"chip.{n}" for n in ON_CHIP), "chip.clock", _BANDWIDTH)}


_BANDWIDTH = "device.memory_bandwidth"


def product_factors(
    at: SymbolTable, m: Value, n: Value, k: Value, groups: Value = 1.0, *, element: Value = 2.0
) -> tuple[Value, Value]:
    """(factor of compute time, factor of memory traffic) of a product, 1 for a device that is not described by its arrays."""
    if not changed(at):
        return 1.0, 1.0
    sizes = {"m": m, "n": n, "k": k, "groups": groups, "element": element}
    chip = {name: at[f"chip.{name}"] for name in ON_CHIP}
    rows = np.broadcast_arrays(*(np.atleast_1d(np.asarray(v, np.float64)) for v in (*sizes.values(), *chip.values())))
    columns = Columns.from_values({name: row.ravel() for name, row in zip((*sizes, *chip), rows, strict=True)})
    combinations, index = distinct(columns, columns.levels)  # many designs and plans share few shapes on few chips
    shape = [combinations[name] for name in ("m", "n", "k", "groups")]
    bytes_ = combinations["element"]
    on_chip = {f"chip.{name}": combinations[name] for name in ON_CHIP} | _APART
    base = {f"chip.{name}": np.ravel(at[f"{BASE}chip.{name}"])[0] for name in ON_CHIP} | _APART  # all descend from one part
    new, old = (product_cost(side, *shape, element=bytes_) for side in (on_chip, base))
    # each at its own peak rate, how long a product takes on chip; the peak itself is in the rate already
    compute = _fill(new, on_chip) / _fill(old, base)
    traffic = new.memory_bytes / old.memory_bytes
    like = np.broadcast_shapes(*(np.shape(v) for v in (*sizes.values(), *chip.values())))
    return compute[index].reshape(like), traffic[index].reshape(like)


_APART: dict[str, float] = {"chip.clock": 1.0, "device.memory_bandwidth": np.inf}
"""What the factors leave to the rates: cycles are compared, with the memory out of the way."""


def attention_factors(
    at: SymbolTable, batch: Value, heads: Value, queries: Value, keys: Value, width: Value, *, fused: bool = True
) -> tuple[Value, Value]:
    """(factor of compute time, factor of memory traffic) of attention, 1 for a device not described by its arrays."""
    if not changed(at):
        return 1.0, 1.0
    mapping = "fusemax" if fused else "unfused"
    sides = (at, _Base(at))
    new, old = (attention_cost(mapping, side, batch, heads, queries, keys, width) for side in sides)
    (a, b), (peak, base_peak) = ((np.maximum(c.matrix, c.vector) for c in (new, old)), (_peak(side) for side in sides))
    return a * peak / (b * base_peak), new.traffic / old.traffic


def changed(at: SymbolTable) -> bool:
    """Whether any design point differs from its base in what is on the chip."""
    try:
        at["chip.array_rows"]
    except KeyError:
        return False
    return any(np.any(np.asarray(at[f"chip.{name}"]) != at[f"{BASE}chip.{name}"]) for name in ON_CHIP)


def _peak(at: SymbolTable) -> Value:
    return at["chip.cores"] * at["chip.matrix_fma"] * at["chip.clock"]


def _fill(cost: ProductCost, at: SymbolTable) -> FloatArray:
    """Seconds on chip times the peak rate: what is not reached of it."""
    return np.asarray(np.maximum(cost.compute, cost.shared) * _peak(at))


class _Base:
    """The base part's symbols under the design's own names."""

    def __init__(self, at: SymbolTable) -> None:
        self._at = at

    def __getitem__(self, symbol: str) -> Value:
        return self._at[f"{BASE}{symbol}"]
