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
    """Joules per byte by tier, and the share of the dynamic power a matrix unit takes at its peak rate."""
    with (Path(__file__).parent / "data" / "energy.yaml").open(encoding="utf-8") as file:
        facts = facts_in(file.read())
    return {key: float(facts[key]["value"]) for key in ("compute_share", "memory", "scale_up", "scale_out")}


def energy(
    at: SymbolTable, time: FloatArray, flops: FloatArray, traffic: FloatArray, inner_bytes: Value, outer_bytes: Value
) -> dict[str, FloatArray]:
    """Joules of one step over all devices, by part; flops, traffic and bytes are per device and step, time in seconds."""
    cost = prices()
    room = at["device.power"] - at["device.idle_power"]
    peak = np.maximum(np.maximum(at["device.matrix_flops.bf16"], at["device.matrix_flops.fp16"]), 1.0)
    parts = {
        "static": at["device.idle_power"] * time,
        "compute": flops * _own(at, "flop", cost["compute_share"] * room / peak),
        "memory": traffic * _own(at, "memory", cost["memory"]),
        "scale_up": inner_bytes * _own(at, "scale_up", cost["scale_up"]),
        "scale_out": outer_bytes * _own(at, "scale_out", cost["scale_out"]),
    }
    dynamic = parts["compute"] + parts["memory"] + parts["scale_up"] + parts["scale_out"]
    cap = np.minimum(1.0, room * time / np.maximum(dynamic, _LEAST)) * at["devices"]
    return {name: part * (at["devices"] if name == "static" else cap) for name, part in parts.items()}


def _own(at: SymbolTable, name: str, usual: Value) -> Value:
    """Joules a FLOP or byte that a design binds (costmodels/machines/designs.py), else the usual."""
    try:
        return at[f"energy.{name}"]
    except KeyError:
        return usual


def price(at: SymbolTable, time: FloatArray) -> FloatArray:
    """US dollars of one step at the device-hour price."""
    return np.asarray(at["devices"] * at["device.price_per_hour"] * time / SECONDS_PER_HOUR, np.float64)
