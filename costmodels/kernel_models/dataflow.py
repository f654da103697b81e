"""Kernels on a device described by its arrays and buffers: the roofline, moved by what its dataflow changes against its base.

A catalogue device has no `chip.*` symbols and answers as the roofline does; a design (`spaces.hardware.accelerators`) answers
with its base's sustained shares times the factors of `costmodels.machines.relative`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from costmodels.kernel_models.operations import (
    DeviceSymbols,
    Shapes,
    complete,
    datasheet_bound,
    element_bytes,
    family_of,
    traffic_and_work,
)
from costmodels.kernel_models.protocol import KernelTime, interval
from costmodels.kernel_models.roofline import Roofline, roofline_time
from costmodels.kernels import smooth_max
from costmodels.machines.relative import attention_factors, changed, product_factors
from spaces.columns import FloatArray, IntArray


class Dataflow:
    """Roofline at the base's sustained shares, moved by array and buffer sizes; evidence is first principles."""

    @property
    def reads(self) -> frozenset[str]:
        """What the roofline reads, and how the chip is made."""
        return frozenset({*Roofline().reads, "chip.*", "base.*"})

    def predict(self, op: str, shapes: Shapes, device: DeviceSymbols) -> KernelTime:
        """As the protocol says; an operator that units beside the memory run sooner takes their time."""
        main = self._main(op, shapes, device)
        near = near_memory_time(op, shapes, device)
        if near is None:
            return main
        share = np.minimum(near / main.value, 1.0)
        return KernelTime(value=main.value * share, low=main.low * share, high=main.high * share, evidence=main.evidence)

    def seconds_on(self, op: str, shapes: Shapes, devices: Sequence[DeviceSymbols], device: IntArray) -> FloatArray:
        """As `ManyDevices` says; devices with fp8 and those without take different kernels, and are asked apart."""
        narrow = np.array([one.get("device.matrix_flops.fp8", 0.0) > 0 for one in devices])[device]
        seconds = np.empty(len(device))
        for kind in np.unique(narrow).tolist():
            rows: Any = slice(None) if np.all(narrow == kind) else np.flatnonzero(narrow == kind)
            own = {name: np.asarray(values)[rows] for name, values in shapes.items()}
            at = _RowEach(devices, device[rows])
            main = roofline_time(op, own, at)
            if _moved(op, at):
                main = np.maximum(main * _factor(op, own, at), datasheet_bound(op, own, at))
            near = near_memory_time(op, own, at)
            seconds[rows] = main if near is None else np.minimum(near, main)
        return seconds

    def _main(self, op: str, shapes: Shapes, device: DeviceSymbols) -> KernelTime:
        plain = Roofline().predict(op, shapes, device)
        if not _moved(op, device):
            return plain
        value = plain.value * _factor(op, shapes, device)
        return interval(value, np.log(plain.high / plain.value), plain.evidence, datasheet_bound(op, shapes, device))


def _moved(op: str, device: DeviceSymbols) -> bool:
    """Whether arrays and buffers make the operator's time another than the roofline's."""
    return family_of(op) in ("gemm", "attention") and changed(device)


def _factor(op: str, shapes: Shapes, device: DeviceSymbols) -> FloatArray:
    """How much longer each row takes than the roofline says, (n,): the cubic norm of both limits, moved and as they were."""
    compute, traffic = _factors(op, shapes, device)
    work = traffic_and_work(op, shapes, device)
    on_chip = work.flops / work.rate
    moved = work.traffic / device["device.memory_bandwidth"]
    return np.asarray(np.cbrt((on_chip * compute) ** 3 + (moved * traffic) ** 3) / np.cbrt(on_chip**3 + moved**3))


def near_memory_time(op: str, shapes: Shapes, device: DeviceSymbols) -> FloatArray | None:
    """Seconds of each row on the units beside the memory, infinite for what they do not run; None where there are none.

    They run what reads much and computes little: decode attention and grouped products (Duplex, Yun et al., MICRO 2024, §IV),
    at the bandwidth that they see and the shares of it that kernels sustain.
    """
    rate = device.get("device.near_memory_flops", 0.0)
    if not np.any(rate) or op not in ("attention_decode", "gemm"):
        return None
    work = traffic_and_work(op, shapes, device)
    sustained = device["kernel.gemm.bandwidth" if op == "gemm" else "kernel.pointwise.bandwidth"]
    bandwidth = device["device.near_memory_bandwidth"] * sustained
    with np.errstate(divide="ignore"):  # a design without such units takes for ever on them
        computed = work.flops / rate
    time = device["kernel.gemm.overhead"] + smooth_max(computed, work.traffic / bandwidth)
    runs = complete(op, shapes)["groups"] > 1 if op == "gemm" else True
    return np.asarray(np.where(runs, time, np.inf), np.float64)


class _RowEach(Mapping[str, Any]):
    """Symbols of devices for rows on `devices[device]`: a number where all devices agree, else one a row, (n,), when asked."""

    def __init__(self, devices: Sequence[DeviceSymbols], device: IntArray) -> None:
        self._devices, self._device, self._found = devices, device, dict[str, Any]()

    def __getitem__(self, name: str) -> Any:
        if name not in self._found:
            values = np.array([one[name] for one in self._devices])
            self._found[name] = float(values[0]) if np.all(values == values[0]) else values[self._device]
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._devices[0])

    def __len__(self) -> int:
        return len(self._devices[0])


def _factors(op: str, shapes: Shapes, device: DeviceSymbols) -> tuple[FloatArray, FloatArray]:
    at = complete(op, shapes)
    if family_of(op) == "gemm":
        found = product_factors(device, at["m"], at["n"], at["k"], at["groups"], element=element_bytes(at["dtype"]))
    else:
        apart = at["implementation"] == "unfused"
        sizes = (at["batch"], at["heads"], at["q_len"], at["kv_len"], at["head_dim"])
        fused, stored = (attention_factors(device, *sizes, fused=kind) for kind in (True, False))
        found = tuple(np.where(apart, b, a) for a, b in zip(fused, stored, strict=True))
    return np.asarray(found[0], np.float64), np.asarray(found[1], np.float64)
