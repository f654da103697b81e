"""Power of an accelerator: static by die area, energy per FLOP by format, per byte by tier, and a cap that lowers the clock."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from costmodels.machines.area import total_area
from costmodels.machines.tables import constants, of_memory, of_process
from spaces.columns import FloatArray, Value
from spaces.expressions import SymbolTable

TIERS = ("memory", "scale_up", "scale_out", "host_link", "die_link", "sram")
"""Where bytes may move, apart from the FLOPs."""


def static_power(at: SymbolTable) -> FloatArray:
    """Watts drawn while powered, by die area; shape (n,)."""
    return np.asarray(constants("power")["static"] * total_area(at), np.float64)


def energy_per_flop(at: SymbolTable, number_format: str = "bf16") -> FloatArray:
    """Joules of a matrix FLOP in a format: arithmetic of the node times the delivery of operands. KeyError if unknown."""
    cost = constants("power")
    return np.asarray(
        cost["fma_energy"] * cost["delivery"] * cost["formats"][number_format] * of_process("energy", at["chip.process"])
    )


def energy_per_byte(at: SymbolTable, tier: str) -> FloatArray:
    """Joules of a byte moved at a tier (TIERS). KeyError if unknown."""
    if tier == "memory":
        return np.asarray(of_memory("energy", at["chip.memory_kind"]))
    if tier == "sram":
        return np.asarray(constants("power")["sram"] * of_process("energy", at["chip.process"]))
    return np.asarray(constants("power")[tier], np.float64)


def dynamic_power(at: SymbolTable, flops: Mapping[str, Value], traffic: Mapping[str, Value]) -> dict[str, FloatArray]:
    """Watts by part for FLOP/s by format and bytes/s by tier; parts `compute` and the tiers given."""
    parts = {"compute": np.asarray(sum(energy_per_flop(at, name) * rate for name, rate in flops.items()), np.float64)}
    return parts | {tier: np.asarray(energy_per_byte(at, tier) * rate, np.float64) for tier, rate in traffic.items()}


def design_power(at: SymbolTable, rate: Value | None = None) -> dict[str, FloatArray]:
    """Watts by part that the package would draw if nothing capped it; they sum to the total.

    At `rate` FLOP/s of 16-bit products, or at the share of its peak that a part is designed for.
    """
    cost = constants("power")
    flops = {"bf16": cost["activity"] * at["device.matrix_flops.bf16"] if rate is None else rate}
    share = cost["memory_activity"]
    traffic = {
        "memory": share * at["device.memory_bandwidth"],
        "scale_up": share * at["device.scale_up_bandwidth"],
        "die_link": share * at["chip.die_link_bandwidth"],
    }
    return {"static": static_power(at), **dynamic_power(at, flops, traffic)}


def clock_share(static: Value, dynamic: Value, cap: Value) -> FloatArray:
    """The share of the full clock at which static + dynamic · share^(1/x) stays within the cap; 1 where nothing is capped.

    x is the exponent of rate over watts (chips.yaml). A cap at or below the static power leaves no clock: 0.
    """
    room = np.maximum(np.asarray(cap, np.float64) - static, 0.0)
    wanted = np.maximum(np.asarray(dynamic, np.float64), np.finfo(np.float64).tiny)
    return np.asarray(np.minimum(room / wanted, 1.0) ** constants("power")["clock_exponent"])


def capped_power(static: Value, dynamic: Value, cap: Value) -> FloatArray:
    """Watts drawn under a cap; never above it where the cap covers what is static."""
    share = clock_share(static, dynamic, cap)
    return np.asarray(static + dynamic * share ** (1.0 / constants("power")["clock_exponent"]))


def sustained_share(at: SymbolTable) -> FloatArray:
    """The share of the boost clock that the device's own cap leaves under its design activity, shape (n,)."""
    parts = design_power(at)
    static = parts.pop("static")
    return clock_share(static, sum(parts.values()), at["device.power"])
