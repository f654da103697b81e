"""Which measured device stands for one: itself, else the nearest of the same generation, known by what a compute unit does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from costmodels.kernel_models.fitted import Calibration
from costmodels.kernel_models.forms import Parameters
from costmodels.kernel_models.operations import DeviceSymbols

_SAME = ("device.matrix_flops.bf16", "device.memory_bandwidth", "device.compute_units", "device.power")
_PER_UNIT = 1.25  # FLOP/s of one compute unit differ by less within a generation, by about two between them
_FARTHEST = 2.5  # ratio of any of the figures beyond which two parts have little in common
_POWER_EXPONENT = 0.6  # clocks held against power per datasheet FLOP/s, between the two limits of f·V² (costmodels.constants)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sibling:
    """The measured device `name` that stands for another; `same` when it is the device itself."""

    name: str
    calibration: Calibration
    same: bool


def sibling_of(device: DeviceSymbols, devices: Mapping[str, Calibration]) -> Sibling | None:
    """The measured device that is this one or, of its generation, the nearest by datasheet ratios; None when there is none."""
    near: list[tuple[float, str]] = []
    for name, measured in devices.items():
        ratios = [_ratio(device, measured.symbols, figure) for figure in _SAME]
        per_unit = ratios[0] / ratios[2]
        if max(per_unit, 1 / per_unit) > _PER_UNIT or max(max(r, 1 / r) for r in ratios[:3]) > _FARTHEST:
            continue
        if (device.get("device.matrix_flops.fp8", 0.0) > 0) != (measured.symbols["device.matrix_flops.fp8"] > 0):
            continue
        near.append((sum(abs(math.log(r)) for r in ratios), name))
    if not near:
        return None
    distance, name = min(near)
    return Sibling(name=name, calibration=devices[name], same=distance < 0.02)


def transferred(
    variants: Mapping[str, Parameters], device: DeviceSymbols, measured: DeviceSymbols
) -> dict[str, dict[str, float]]:
    """The sibling's parameters for this device: shares of compute follow the power there is for each datasheet FLOP/s."""
    watts = _ratio(device, measured, "device.power") / _ratio(device, measured, "device.matrix_flops.bf16")
    factor = min(max(watts**_POWER_EXPONENT, 0.5), 1.25) if abs(watts - 1.0) > 0.02 else 1.0
    return {
        kind: {key: min(value * factor, 0.98) if key.startswith("share") else value for key, value in values.items()}
        for kind, values in variants.items()
    }


def _ratio(device: DeviceSymbols, measured: DeviceSymbols, figure: str) -> float:
    """This device's figure over the measured one's; 1 where either is not given."""
    ours, theirs = device.get(figure, 0.0), measured.get(figure, 0.0)
    return ours / theirs if ours > 0 and theirs > 0 else 1.0
