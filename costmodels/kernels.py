"""Time of one kernel on one device: rooflines at sustained rates, as pure functions of arrays.

A kernel takes an overhead plus the cubic norm of its compute and its memory time: two limits that round the corner between
them. Rates are the device's datasheet figures times the sustained shares of its generation (costmodels/data/kernels).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from costmodels.machines.relative import product_factors
from spaces.columns import Value
from spaces.expressions import SymbolTable
from spaces.plan import Precision

FORMATS = {
    Precision.FP32: ("fp32", 4.0),
    Precision.FP16: ("fp16", 2.0),
    Precision.BF16: ("bf16", 2.0),
    Precision.FP8: ("fp8", 1.0),
    Precision.MXFP8: ("fp8", 1.0),
    Precision.NVFP4: ("fp4", 0.5),
}
"""Datasheet rate and element bytes of an operand, by precision of the linear layers."""


def smooth_max(compute: Value, memory: Value) -> Value:
    """Cubic norm: within 26 % of the larger where the two are equal, exact where one dominates."""
    return np.cbrt(np.power(compute, 3.0) + np.power(memory, 3.0))


def sixteen_bit_rate(at: SymbolTable) -> Value:
    """FLOP/s of the 16-bit matrix units: bf16, or fp16 on devices that lack bf16."""
    return np.where(
        np.asarray(at["device.matrix_flops.bf16"]) > 0, at["device.matrix_flops.bf16"], at["device.matrix_flops.fp16"]
    )


def matrix_rate(at: SymbolTable, quantised: bool) -> tuple[Value, Value, Value]:
    """(datasheet FLOP/s, sustained share, element bytes) of a linear layer's products under the plan's precision.

    A format that the device lacks is weight-only: it runs at the 16-bit rate. fp32 runs on the matrix units at half that rate
    (TF32 on Ampere and Hopper). What is not quantised stays 16-bit, or fp32 in fp32 training.
    """
    precision = np.asarray(at["precision"])
    if precision.size > 1 and (precision == precision.flat[0]).all():
        precision = precision.flat[0]
    rate = sixteen_bit_rate(at)
    rate = np.where(precision == Precision.FP32, rate / 2, rate)
    share = np.where(precision == Precision.FP32, at["kernel.gemm.share.fp32"], at["kernel.gemm.share.bf16"])
    element = np.where(precision == Precision.FP32, 4.0, 2.0)
    if quantised:
        for code in (Precision.FP8, Precision.MXFP8, Precision.NVFP4):
            if not (precision == code).any():
                continue
            name, size = FORMATS[code]
            native = np.asarray(at[f"device.matrix_flops.{name}"])
            chosen = (precision == code) & (native > 0)
            rate = np.where(chosen, native, rate)
            share = np.where(chosen, at[f"kernel.gemm.share.{code.name.lower()}"], share)
            element = np.where(chosen, size, element)
    return rate, share, element


def gemm_time(
    at: SymbolTable, m: Value, n: Value, k: Value, groups: Value = 1, *, quantised: bool = False, output: float = 2.0
) -> Value:
    """Seconds of `groups` products (m,k)·(k,n); m, n, k as one device sees them.

    The sustained rate is reached as the work grows past `half_flops`: small products fill few units. A device described by its
    arrays moves compute and traffic by what its dataflow changes against its base (costmodels/machines/relative.py).
    """
    rate, share, element = matrix_rate(at, quantised)
    flops = 2.0 * groups * m * n * k
    ramp = flops / (flops + at["kernel.gemm.half_flops"])
    on_chip, moved = product_factors(at, m, n, k, groups, element=element)
    compute = flops / (rate * share * np.maximum(ramp, 0.02)) * on_chip
    traffic = groups * (element * (m * k + k * n) + output * m * n) * moved
    memory = traffic / (at["device.memory_bandwidth"] * at["kernel.gemm.bandwidth"])
    return at["kernel.gemm.overhead"] + smooth_max(compute, memory)


def attention_time(at: SymbolTable, flops: Value, traffic: Value, phase: str) -> Value:
    """Seconds of a fused attention kernel on executed FLOPs; `phase` is 'forward' or 'backward'."""
    compute = flops / (sixteen_bit_rate(at) * at[f"kernel.attention.{phase}"])
    memory = traffic / (at["device.memory_bandwidth"] * at["kernel.pointwise.bandwidth"])
    return at["kernel.gemm.overhead"] + smooth_max(compute, memory)


def streaming_time(at: SymbolTable, traffic: Value, share: str = "bandwidth") -> Value:
    """Seconds of a kernel that only moves `traffic` bytes; `share` names its class of sustained bandwidth."""
    return at["kernel.pointwise.overhead"] + traffic / (at["device.memory_bandwidth"] * at[f"kernel.pointwise.{share}"])


def roofline_time(at: SymbolTable, flops: Value, traffic: Value, rate: Value) -> Any:
    """Datasheet bound: no kernel is faster; seconds."""
    return np.maximum(flops / rate, traffic / at["device.memory_bandwidth"])
