"""The symbols of a device that kernel models read: its datasheet, what its generation's kernels sustain, and its links."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from costmodels.constants import generation_constants, link_symbols, power_factor
from spaces.hardware import Device


def kernel_symbols(device: Device) -> dict[str, float]:
    """`device.*`, `link.*`, `kernel.gemm.*`, `kernel.pointwise.*` and `kernel.attention.<implementation>.<phase>`; SI units.

    Shares of matrix units follow the part's power cap, as `costmodels.constants.device_symbols` has it.
    """
    facts = generation_constants(device.generation)
    speed = power_factor(device, facts["reference"])
    symbols = _flat(facts["kernel"], "kernel") | _flat(facts["attention"], "kernel.attention")
    for key in symbols:
        if key.startswith(("kernel.gemm.share", "kernel.attention")):
            symbols[key] = min(symbols[key] * speed, 0.95)
    default = facts["attention"][facts["attention_default"]]
    for phase, share in default.items():
        symbols[f"kernel.attention.{phase}"] = min(float(share) * speed, 0.95)
    return device.symbols() | symbols | link_symbols(device.generation)


def _flat(tree: Mapping[str, Any], prefix: str) -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}") if isinstance(value, Mapping) else {f"{prefix}.{key}": float(value)}
    return flat
