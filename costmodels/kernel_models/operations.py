"""What each operator is: its columns, the work it does and the bytes it moves, and the time no machine can beat.

Shapes are a struct of arrays (n,): numbers as float64, words (dtype, implementation, cache, launch, …) as text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from costmodels.collectives import collective_bytes
from spaces.columns import FloatArray, Value

Shapes: TypeAlias = Mapping[str, NDArray[Any]]
DeviceSymbols: TypeAlias = Mapping[str, float]

_DIMENSIONS: Mapping[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "attention": ("batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim"),
    "pointwise": ("rows", "cols"),
    "collectives": ("bytes", "ranks", "ranks_per_node"),
}
TEXT: Mapping[str, str] = MappingProxyType(
    {
        "dtype": "bf16",
        "layout": "forward",
        "fast_accumulate": "true",
        "cache": "warm",
        "launch": "graph",
        "implementation": "default",
        "causal": "false",
        "direction": "forward",
    }
)
"""Columns that hold words, with what a blank means."""
_NUMBERS: Mapping[str, float] = {"groups": 1.0}

ATTENTION = ("attention_prefill", "attention_backward", "attention_decode")
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv", "broadcast")
# op: passes over a (rows, cols) operand forward and backward, each operand read or written once; None: no such direction
PASSES: Mapping[str, tuple[float, float | None]] = MappingProxyType(
    {
        "rms_norm": (2, 3),
        "rms_norm_composite": (2, 3),
        "layer_norm": (2, 3),
        "silu_mul": (3, 5),
        "silu": (2, 3),
        "mul": (3, 5),
        "gelu": (2, 3),
        "chunk_silu_mul": (3, 5),
        "add": (3, None),
        "accumulate": (3, None),
        "rotary": (2, 2),
        "softmax": (2, 3),
        "dropout": (2, 2),
        "cat": (2, None),
        "embedding": (2, None),
        "cross_entropy": (1, 2),
        "cross_entropy_fp32": (1, 2),
        "bf16_to_fp32": (3, None),
        "fp32_to_bf16": (3, None),
        "amax": (1, None),
        "quantise_fp8": (1.5, None),
        "copy": (2, None),
    }
)
ELEMENT: Mapping[str, float] = MappingProxyType(
    {"fp32": 4.0, "tf32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "mxfp8": 1.0, "int8": 1.0, "fp4": 0.5, "nvfp4": 0.5}
)
"""Bytes an element, by number format."""
_RATES: Mapping[str, str] = {"mxfp8": "fp8", "nvfp4": "fp4", "fp32": "tf32"}

OPERATIONS: Mapping[str, str] = MappingProxyType(
    {"gemm": "gemm"}
    | dict.fromkeys(ATTENTION, "attention")
    | dict.fromkeys(PASSES, "pointwise")
    | dict.fromkeys(COLLECTIVES, "collectives")
)
"""Family of every operator there is a model for."""


def family_of(op: str) -> str:
    """gemm, attention, pointwise or collectives; '' for an operator without a model."""
    return OPERATIONS.get(op, "")


def dimensions(op: str) -> tuple[str, ...]:
    """The numbers that say how large an operator is."""
    return _DIMENSIONS[OPERATIONS[op]]


class Completed(dict[str, NDArray[Any]]):
    """Shapes with every column of an operator; what `complete` made, it does not make again."""


def complete(op: str, shapes: Shapes) -> Completed:
    """The shapes with every column of the operator, all of shape (n,); blanks take their default.

    Raises ValueError when a dimension is missing or lengths differ.
    """
    if isinstance(shapes, Completed):
        return shapes
    missing = [name for name in dimensions(op) if name not in shapes]
    if missing:
        raise ValueError(f"{op} needs {', '.join(dimensions(op))}; {', '.join(missing)} is missing")
    n = int(np.broadcast_shapes(*(np.shape(shapes[name]) for name in dimensions(op)), (1,))[0])
    full = Completed()
    for name in dimensions(op):
        full[name] = _filled(np.asarray(shapes[name], dtype=np.float64), n)
    for name, usual in _NUMBERS.items():
        full[name] = _filled(np.asarray(shapes.get(name, usual), dtype=np.float64), n)
    for name, word in TEXT.items():
        given = np.asarray(shapes.get(name, word), dtype=np.str_)
        blank = given == ""
        full[name] = _filled(np.where(blank, word, given) if blank.any() else given, n)
    return full


def _filled(values: NDArray[Any], n: int) -> NDArray[Any]:
    return values if values.shape == (n,) else np.broadcast_to(values, (n,))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """FLOPs executed, bytes moved once, and the datasheet's FLOP/s for the format; shape (n,) each."""

    flops: FloatArray
    traffic: FloatArray
    rate: FloatArray


def element_bytes(dtype: NDArray[Any]) -> FloatArray:
    """Bytes an element of each format, shape (n,); an unknown format counts as 16-bit."""
    return by_word(dtype, lambda word: ELEMENT.get(word, 2.0))


def format_rate(dtype: NDArray[Any], device: DeviceSymbols) -> FloatArray:
    """Datasheet FLOP/s of each format, shape (n,); a format the device lacks runs at the 16-bit rate, fp32 at half of it."""
    sixteen: Value = device["device.matrix_flops.bf16"]
    if not np.all(sixteen):
        sixteen = _either(sixteen, device["device.matrix_flops.fp16"])

    def rate(word: str) -> Value:
        native = device.get(f"device.matrix_flops.{_RATES.get(word, word)}", 0.0)
        return _either(native, sixteen / 2 if word in ("fp32", "tf32") else sixteen)

    return by_word(dtype, rate)


def _either(rate: Value, other: Value) -> Value:
    """`rate` where there is one, else `other`; of one device, or of as many as there are rows."""
    return (rate or other) if np.ndim(rate) == 0 else np.where(rate > 0, rate, other)


def traffic_and_work(op: str, shapes: Shapes, device: DeviceSymbols) -> Work:
    """The work of each row. Attention counts executed FLOPs: half of them if causal, 2.5 times forward's for backward."""
    return work_of(op, complete(op, shapes), device)


def work_of(op: str, at: Shapes, device: DeviceSymbols) -> Work:
    """The same of completed shapes."""
    rate = format_rate(at["dtype"], device)
    size = element_bytes(at["dtype"])
    family = OPERATIONS[op]
    if family == "gemm":
        m, n, k, groups = (at[name] for name in ("m", "n", "k", "groups"))
        output = np.maximum(size, 2.0)  # narrow formats write 16-bit results
        return Work(flops=2.0 * m * n * k * groups, traffic=groups * (size * (m * k + n * k) + output * m * n), rate=rate)
    if family == "attention":
        batch, heads, kv, q, length, width = (at[name] for name in _DIMENSIONS["attention"])
        executed = np.where(at["causal"] == "true", 0.5, 1.0)
        flops = 4.0 * batch * heads * q * length * width * executed
        traffic = size * batch * width * (2.0 * heads * q + 2.0 * kv * length)
        backward = op == "attention_backward"
        return Work(flops=flops * (2.5 if backward else 1.0), traffic=traffic * (2.0 if backward else 1.0), rate=rate)
    if family == "pointwise":
        forward, backward_passes = PASSES[op]
        back = backward_passes if backward_passes is not None else forward
        passes = np.where(at["direction"] == "backward", back, forward)
        traffic = passes * size * at["rows"] * at["cols"]
        return Work(flops=np.zeros_like(traffic), traffic=traffic, rate=rate)
    inner, outer = collective_bytes(op, at["bytes"], at["ranks"], at["ranks_per_node"])
    return Work(flops=np.zeros_like(inner), traffic=inner + outer, rate=rate)


def datasheet_bound(op: str, shapes: Shapes, device: DeviceSymbols) -> FloatArray:
    """Seconds that no kernel on this device can beat, shape (n,).

    What two and a half times the last-level cache holds is free of the memory's limit when buffers are warm.
    """
    return bound_of(op, complete(op, shapes), device)


def bound_of(op: str, at: Shapes, device: DeviceSymbols) -> FloatArray:
    """The same of completed shapes."""
    work = work_of(op, at, device)
    if OPERATIONS[op] == "collectives":
        inner, outer = collective_bytes(op, at["bytes"], at["ranks"], at["ranks_per_node"])
        return np.asarray(np.maximum(inner / device["device.scale_up_bandwidth"], outer / device["device.nic_bandwidth"]))
    warm = at["cache"] != "cold"
    moved = np.maximum(work.traffic - np.where(warm, 2.5 * device["device.cache_bytes"], 0.0), 0.0)
    return np.asarray(np.maximum(work.flops / work.rate, moved / device["device.memory_bandwidth"]))


def words_in(words: NDArray[Any]) -> list[str]:
    """The distinct words of an array, in order; for few words among many rows, which sorting or hashing text is slow for."""
    found, left = [], words.ravel()
    while len(left):
        found.append(str(left[0]))
        left = left[left != left[0]]
    return sorted(found)


def by_word(words: NDArray[Any], value: Callable[[str], Value]) -> FloatArray:
    """What `value` says of each word, one number or one for each row, shape (n,)."""
    spoken = words_in(words)
    if len(spoken) == 1:
        return np.array(np.broadcast_to(np.asarray(value(spoken[0]), np.float64), words.shape))
    result = np.zeros(words.shape)
    for word in spoken:
        own = words == word
        found = np.asarray(value(word), np.float64)
        result[own] = found if found.ndim == 0 else found[own]
    return result
