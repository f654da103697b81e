"""The catalogue as tables: models and devices that an experiment may name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from dse.measures import GIB, significant
from dse.tables import table
from spaces import architecture as architectures
from spaces.hardware import Device, device_names, find_device


def models_page() -> str:
    """Every preset with its sizes."""
    rows = []
    for name in architectures.names():
        a = architectures.find(name)
        count = "" if a.parameters is None else significant(a.parameters / 1e9)
        experts = f"{a.experts_per_token} of {a.experts}" if a.experts else ""
        rows.append([a.name, count, f"{a.layers}", f"{a.hidden:,}", f"{a.heads}/{a.kv_heads}", experts, f"{a.max_sequence:,}"])
    headings = ["model", "parameters, 10⁹", "layers", "hidden", "heads/kv", "experts", "longest sequence"]
    return table(headings, rows, left=frozenset({0})) + f"\n\n{len(rows)} models; dse models NAME shows one with its source."


def model_page(name: str) -> str:
    """One preset in full. Raises UnknownModel."""
    return _fields(dataclasses.asdict(architectures.find(name)))


def devices_page() -> str:
    """Every device with what matters most."""
    devices = [find_device(name) for name in device_names()]
    headings = ["device", "bf16, TFLOP/s", "memory, GiB", "GB/s", "domain", "scale-up, GB/s", "NIC, GB/s", "W", "USD/h"]
    return table(headings, [_row(d) for d in devices], left=frozenset({0})) + (
        f"\n\n{len(devices)} devices; peaks are dense, bandwidths one direction; dse hardware NAME shows one with its source."
    )


def _row(device: Device) -> list[str]:
    peak = device.matrix_flops.get("bf16") or device.matrix_flops.get("fp16", 0.0)
    return [
        device.name,
        significant(peak / 1e12),
        significant(device.memory_capacity / GIB, 3),
        f"{device.memory_bandwidth / 1e9:,.0f}",
        str(device.scale_up_domain),
        f"{device.scale_up_bandwidth / 1e9:,.0f}",
        f"{device.nic_bandwidth / 1e9:,.4g}",
        f"{device.power:,.0f}",
        f"{device.price_per_hour:.2f}",
    ]


def device_page(name: str) -> str:
    """One device in full, SI units. Raises UnknownDevice."""
    device = find_device(name)
    return _fields({field.name: getattr(device, field.name) for field in dataclasses.fields(device)})


def _fields(values: Mapping[str, object]) -> str:
    width = max(len(name) for name in values)
    said = {name: _plain(value) for name, value in values.items() if value is not None}
    return "\n".join(f"{name.ljust(width)}  {text}" for name, text in said.items() if text)


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {figure:g}" for name, figure in value.items())
    if isinstance(value, tuple | frozenset):
        return ", ".join(str(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
