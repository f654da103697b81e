"""Kernels on a device described by its arrays and buffers: the roofline, moved by what its dataflow changes against its base.

A catalogue device has no `chip.*` symbols and answers as the roofline does; a design (`spaces.hardware.accelerators`) answers
with its base's sustained shares times the factors of `costmodels.machines.relative`.
"""

from __future__ import annotations

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
from costmodels.kernel_models.roofline import Roofline
from costmodels.kernels import smooth_max
from costmodels.machines.relative import attention_factors, changed, product_factors
from spaces.columns import FloatArray


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

    def _main(self, op: str, shapes: Shapes, device: DeviceSymbols) -> KernelTime:
        plain = Roofline().predict(op, shapes, device)
        if family_of(op) not in ("gemm", "attention") or not changed(device):
            return plain
        compute, traffic = _factors(op, shapes, device)
        work = traffic_and_work(op, shapes, device)
        on_chip = work.flops / work.rate
        moved = work.traffic / device["device.memory_bandwidth"]
        bound = np.maximum(on_chip, moved)
        factor = np.cbrt((on_chip * compute) ** 3 + (moved * traffic) ** 3) / np.cbrt(on_chip**3 + moved**3)
        spread = np.log(plain.high / plain.value)
        floor = np.maximum(datasheet_bound(op, shapes, device), np.zeros_like(bound))
        return interval(plain.value * factor, spread, plain.evidence, floor)


def near_memory_time(op: str, shapes: Shapes, device: DeviceSymbols) -> FloatArray | None:
    """Seconds of each row on the units beside the memory, infinite for what they do not run; None where there are none.

    They run what reads much and computes little: decode attention and grouped products (Duplex, Yun et al., MICRO 2024, §IV),
    at the bandwidth that they see and the shares of it that kernels sustain.
    """
    rate = device.get("device.near_memory_flops", 0.0)
    if not rate or op not in ("attention_decode", "gemm"):
        return None
    work = traffic_and_work(op, shapes, device)
    sustained = device["kernel.gemm.bandwidth" if op == "gemm" else "kernel.pointwise.bandwidth"]
    bandwidth = device["device.near_memory_bandwidth"] * sustained
    time = device["kernel.gemm.overhead"] + smooth_max(work.flops / rate, work.traffic / bandwidth)
    runs = complete(op, shapes)["groups"] > 1 if op == "gemm" else True
    return np.asarray(np.where(runs, time, np.inf), np.float64)


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
