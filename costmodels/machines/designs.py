"""Designs as columns: every symbol that a cost model reads about a device, for n accelerators that descend from one part.

What a design does not change it has from its part: kernel constants, latencies, the stack's numbers. What it changes follows:
rates by formula, sustained shares by what its power cap leaves of the clock, energy by process and memory, price by area
and yield.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from costmodels.machines.power import energy_per_byte, energy_per_flop, static_power, sustained_share
from costmodels.machines.price import cluster_capital, device_price, ownership_per_hour
from costmodels.machines.relative import ON_CHIP, base_symbols, changed
from spaces.columns import FloatArray
from spaces.hardware.accelerators import Accelerator

HIGHEST_SHARE = 0.95
"""No kernel sustains more of a peak."""


def design_symbols(
    base: Accelerator, own: Mapping[str, float], at: Mapping[str, FloatArray], devices: float
) -> dict[str, FloatArray]:
    """The symbols that n designs bind in place of `own`, the symbols of the device that `base` is measured as; each (n,).

    `at` are the designs' `chip.*` and `device.*` (`Accelerator.columns`); `devices` sizes the cluster whose network a device's
    price has a share of. A symbol that is the same as in `own` for every design is left out.
    """
    ratio = sustained_share(at) / sustained_share(base.columns())
    symbols: dict[str, FloatArray] = {name: values for name, values in at.items() if name.startswith("device.")}
    for name, value in own.items():
        if name.startswith(("kernel.gemm.share", "kernel.attention")):
            symbols[name] = np.minimum(value * ratio, HIGHEST_SHARE)
    symbols["device.domain"] = np.minimum(symbols["device.domain"], devices)  # a domain larger than all of them is no larger
    symbols["device.idle_power"] = np.minimum(static_power(at), symbols["device.power"])
    symbols["device.price_per_hour"] = hourly_price(at, devices)
    symbols["energy.flop"] = energy_per_flop(at)
    for tier in ("memory", "scale_up", "scale_out"):
        symbols[f"energy.{tier}"] = np.broadcast_to(energy_per_byte(at, tier), ratio.shape)
    if not np.any(symbols["device.near_memory_flops"]):  # most designs have no such units
        symbols = {name: values for name, values in symbols.items() if not name.startswith("device.near_memory_")}
    described: dict[str, Any] = {**at, **base_symbols(base)}
    if changed(described):
        read = {*(f"chip.{n}" for n in (*ON_CHIP, "clock")), *base_symbols(base)}
        symbols |= {n: np.broadcast_to(v, ratio.shape) for n, v in described.items() if n in read}
    return {name: values for name, values in symbols.items() if not np.all(values == own.get(name, np.nan))}


def capital_per_device(at: Mapping[str, FloatArray], devices: float) -> FloatArray:
    """USD a device with its share of hosts, switches and optics, in a cluster of so many."""
    return np.asarray(sum(cluster_capital(at, device_price(at), devices).values()) / devices, np.float64)


def hourly_price(at: Mapping[str, FloatArray], devices: float) -> FloatArray:
    """USD an hour of owning one device at full power, in a cluster of so many."""
    whole = ownership_per_hour(at, capital_per_device(at, devices) * devices, at["device.power"], devices)
    return np.asarray(sum(whole.values()) / devices, np.float64)
