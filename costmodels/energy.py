"""Energy and price of a step.

Energy is static power plus a price per FLOP and per byte by tier, never above the device's power cap; price is device-hours.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from spaces.columns import FloatArray, Value
from spaces.expressions import SymbolTable
from spaces.facts import facts_in

PARTS = ("static", "compute", "memory", "scale_up", "scale_out")
"""Parts of the energy, in report order."""
SECONDS_PER_HOUR = 3600.0
_LEAST = 1e-30
"""Joules that a step without work is taken to use."""


@cache
def prices() -> dict[str, float]:
    """Joules per byte by tier, the share of the dynamic power that matrix units ask at their peak rate, what a cap leaves."""
    with (Path(__file__).parent / "data" / "energy.yaml").open(encoding="utf-8") as file:
        facts = facts_in(file.read())
    return {key: float(facts[key]["value"]) for key in ("compute_share", "memory", "held", "scale_up", "scale_out")}


def energy(
    at: SymbolTable,
    time: FloatArray,
    flops: FloatArray,
    traffic: FloatArray,
    inner_bytes: Value,
    outer_bytes: Value,
    busy: FloatArray | None = None,
) -> dict[str, FloatArray]:
    """Joules of one step over all devices, by part; flops, traffic and bytes are per device and step, time in seconds.

    `busy` are the seconds of it that hold the work (None: all): long waits are idle, and the cap holds in what is left.
    """
    cost = prices()
    parts = {
        "static": at["device.idle_power"] * time,
        "compute": flops * flop_price(at),
        "memory": traffic * _own(at, "memory", cost["memory"]),
        "scale_up": inner_bytes * _own(at, "scale_up", cost["scale_up"]),
        "scale_out": outer_bytes * _own(at, "scale_out", cost["scale_out"]),
    }
    dynamic = parts["compute"] + parts["memory"] + parts["scale_up"] + parts["scale_out"]
    cap = np.minimum(1.0, _held(at) * (time if busy is None else busy) / np.maximum(dynamic, _LEAST)) * at["devices"]
    return {name: part * (at["devices"] if name == "static" else cap) for name, part in parts.items()}


def flop_price(at: SymbolTable) -> Value:
    """Joules of a FLOP of the matrix units at full clock."""
    room = at["device.power"] - at["device.idle_power"]
    return _own(at, "flop", prices()["compute_share"] * room / _peak(at))


def held_share(at: SymbolTable) -> FloatArray:
    """What a FLOP costs of `flop_price` where products go on for long: the cap then lowers clock and voltage; (n,) or ()."""
    rate = at["kernel.gemm.share.bf16"] * _peak(at)
    return np.asarray(np.minimum(1.0, _held(at) / np.maximum(rate * flop_price(at), _LEAST)), np.float64)


def _peak(at: SymbolTable) -> FloatArray:
    """16-bit FLOP/s of the datasheet."""
    return np.asarray(np.maximum(np.maximum(at["device.matrix_flops.bf16"], at["device.matrix_flops.fp16"]), 1.0), np.float64)


def _held(at: SymbolTable) -> FloatArray:
    """Watts above idle that a device held at its cap draws."""
    return np.asarray(np.maximum(prices()["held"] * at["device.power"] - at["device.idle_power"], 0.0), np.float64)


def _own(at: SymbolTable, name: str, usual: Value) -> Value:
    """Joules a FLOP or byte that a design binds (costmodels/machines/designs.py), else the usual."""
    try:
        return at[f"energy.{name}"]
    except KeyError:
        return usual


def price(at: SymbolTable, time: FloatArray) -> FloatArray:
    """US dollars of one step at the device-hour price."""
    return np.asarray(at["devices"] * at["device.price_per_hour"] * time / SECONDS_PER_HOUR, np.float64)
