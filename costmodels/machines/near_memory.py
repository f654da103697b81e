"""Operators of low intensity beside the memory (Duplex, Yun et al., MICRO 2024): which unit runs what, and how two share.

A device has a main unit behind its memory interface and a near-memory unit with less compute and more bandwidth. An operator
takes the unit on which its roofline is lower; one that can be cut runs on both at once.
"""

from __future__ import annotations

import numpy as np

from spaces.columns import FloatArray, Value


def attention_intensity(heads: Value, kv_heads: Value, element: Value = 2.0) -> FloatArray:
    """FLOP a byte of decode attention over the cache: 2·heads / kv_heads for each element read, over its bytes.

    Counting a multiply-add as one operation, as Duplex does, 16-bit operands give heads / kv_heads / 2 · 2 = the group size.
    """
    return np.asarray(2.0 * np.asarray(heads, np.float64) / kv_heads / element)


def expert_intensity(tokens: Value, experts: Value, chosen: Value, element: Value = 2.0) -> FloatArray:
    """FLOP a byte of one expert's weights when `tokens` choose `chosen` of `experts`: 2 · tokens·chosen / touched / bytes.

    Experts touched by a batch: E·(1 − (1 − k/E)^B), each read once.
    """
    e, k, b = (np.asarray(value, np.float64) for value in (experts, chosen, tokens))
    touched = e * (1.0 - (1.0 - k / e) ** b)
    return np.asarray(2.0 * b * k / touched / element)


def unit_time(flops: Value, moved: Value, rate: Value, bandwidth: Value) -> FloatArray:
    """Seconds on one unit: the slower of its FLOP/s and its bytes/s."""
    return np.asarray(np.maximum(np.asarray(flops, np.float64) / rate, np.asarray(moved, np.float64) / bandwidth))


def chosen_time(
    flops: Value, moved: Value, main: tuple[Value, Value], near: tuple[Value, Value]
) -> tuple[FloatArray, FloatArray]:
    """(seconds, whether near memory) on the better unit; units are (FLOP/s, bytes/s)."""
    one, other = unit_time(flops, moved, *main), unit_time(flops, moved, *near)
    return np.minimum(one, other), np.asarray(other < one)


def shared_time(flops: Value, moved: Value, main: tuple[Value, Value], near: tuple[Value, Value]) -> FloatArray:
    """Seconds when the operator is cut so that both units end together: 1 / (1/t_main + 1/t_near)."""
    one, other = unit_time(flops, moved, *main), unit_time(flops, moved, *near)
    return np.asarray(one * other / (one + other))


def crossover_intensity(main: tuple[Value, Value], near: tuple[Value, Value]) -> FloatArray:
    """FLOP a byte at which the two units take equally long; below it near memory wins (where it has the bandwidth)."""
    return np.asarray(np.asarray(near[0], np.float64) / main[1])
