"""What a machine cannot do: rows that claim it are refused by name instead of written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from costmodels.calibration.suite import Cell


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Ceilings of one device: FLOP/s by dtype, bytes/s of memory and link, bytes of memory and of its last cache."""

    flops: Mapping[str, float] = field(default_factory=dict)
    bandwidth: float = math.inf
    link_bandwidth: float = math.inf
    memory: float = math.inf
    cache: float = 0.0


_HOPPER = {"bf16": 989.4e12, "fp16": 989.4e12, "fp8": 1978.9e12, "tf32": 494.7e12, "fp32": 494.7e12}
_AMPERE = {"bf16": 312e12, "fp16": 312e12, "tf32": 156e12, "fp32": 156e12}
_BLACKWELL = {"bf16": 2250e12, "fp16": 2250e12, "fp8": 4500e12, "tf32": 1125e12, "fp32": 1125e12}

# Vendor datasheets, dense; the key is a part of the name the driver reports, the first that matches wins.
DATASHEETS: tuple[tuple[str, Limits], ...] = (
    ("H100 80GB HBM3", Limits(flops=_HOPPER, bandwidth=3.35e12, link_bandwidth=450e9, memory=85.9e9, cache=50 * 2**20)),
    ("H100 PCIe", Limits(flops=_HOPPER, bandwidth=2.0e12, link_bandwidth=300e9, memory=85.9e9, cache=50 * 2**20)),
    ("H200 NVL", Limits(flops=_HOPPER, bandwidth=4.8e12, link_bandwidth=450e9, memory=151.4e9, cache=60 * 2**20)),
    ("H200", Limits(flops=_HOPPER, bandwidth=4.8e12, link_bandwidth=450e9, memory=151.4e9, cache=60 * 2**20)),
    ("A100-SXM4-80GB", Limits(flops=_AMPERE, bandwidth=2.039e12, link_bandwidth=300e9, memory=85.9e9, cache=40 * 2**20)),
    ("A100-SXM4-40GB", Limits(flops=_AMPERE, bandwidth=1.555e12, link_bandwidth=300e9, memory=42.9e9, cache=40 * 2**20)),
    ("B200", Limits(flops=_BLACKWELL, bandwidth=8e12, link_bandwidth=900e9, memory=206e9, cache=126 * 2**20)),
)

SHORT_NAMES = (
    ("H100 80GB HBM3", "H100-80GB-SXM"),
    ("H100 PCIe", "H100-80GB-PCIe"),
    ("H200 NVL", "H200-NVL-141GB"),
    ("H200", "H200-141GB-SXM"),
    ("A100-SXM4-80GB", "A100-80GB-SXM"),
    ("A100-SXM4-40GB", "A100-40GB-SXM"),
)


def limits_of(device: str) -> Limits:
    """Ceilings by the driver's name of the device; none for an unknown one."""
    return next((limits for part, limits in DATASHEETS if part in device), Limits())


def short_name(device: str) -> str:
    """The catalogue's name of a device, else the driver's own."""
    return next((name for part, name in SHORT_NAMES if part in device), device)


def _number(row: Mapping[str, Cell], column: str) -> float | None:
    value = row.get(column, "")
    return None if value == "" else float(value)


def refusals(row: Mapping[str, Cell], limits: Limits) -> list[str]:
    """Why this row cannot be true; empty when it can.

    Looks at `time_s` and other `*_s` (finite, positive), `flops` per second against the dtype's peak, `bytes` per second
    against memory (less what the last cache may have kept, unless the row says `cache=cold`), `link_bytes` per second
    against the link, and peak bytes against the memory there is.
    """
    why = []
    for column in row:
        if not column.endswith("_s") or row[column] == "":
            continue
        seconds = float(row[column])
        if not math.isfinite(seconds) or seconds <= 0:
            why.append(f"{column} is {seconds}")
    time = _number(row, "time_s")
    if time is None or not math.isfinite(time) or time <= 0:
        return why or ["time_s is missing"]
    flops, moved, linked = _number(row, "flops"), _number(row, "bytes"), _number(row, "link_bytes")
    peak = limits.flops.get(str(row.get("dtype", "bf16")), math.inf)
    if flops is not None and flops / time > peak:
        why.append(f"{flops / time:.4g} FLOP/s is above the peak of {peak:.4g}")
    if moved is not None:
        kept = 0.0 if row.get("cache") == "cold" else 2 * limits.cache
        if (moved - kept) / time > limits.bandwidth:
            why.append(f"{(moved - kept) / time:.4g} bytes/s is above the memory's {limits.bandwidth:.4g}")
    if linked is not None and linked / time > limits.link_bandwidth:
        why.append(f"{linked / time:.4g} bytes/s is above the link's {limits.link_bandwidth:.4g}")
    for column in ("peak_allocated", "peak_reserved"):
        used = _number(row, column)
        if used is not None and not 0 <= used <= limits.memory:
            why.append(f"{column} of {used:.4g} bytes is above the {limits.memory:.4g} there are")
    return why
