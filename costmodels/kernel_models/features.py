"""What the residual sees of a kernel: sizes, intensity, tile and wave remainders, format, layout, cache.

Features are dimensionless or log2, and roofline-normalised, so that they mean the same on a device that was never measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np

from costmodels.kernel_models.forms import flash_parts, padded
from costmodels.kernel_models.operations import (
    ATTENTION,
    DeviceSymbols,
    Shapes,
    bound_of,
    dimensions,
    family_of,
    work_of,
)
from spaces.columns import FloatArray

_TILES = ((64, 128), (128, 128), (128, 256), (256, 128), (64, 256), (192, 128))
_CODE = ("operations.py", "forms.py", "features.py", "domain.py", "roofline.py")

Features = Mapping[str, FloatArray]


def matrix(op: str, at: Shapes, device: DeviceSymbols, prior: FloatArray) -> FloatArray:
    """Features of each row, shape (n, number of features of the family); `prior` is the calibrated time in seconds."""
    columns = _FAMILIES[family_of(op)](op, at, device, prior)
    return np.column_stack([np.broadcast_to(column, prior.shape) for column in columns.values()])


def names(family: str) -> tuple[str, ...]:
    """The features' names, in the order of the matrix's columns."""
    op = {"gemm": "gemm", "attention": "attention_prefill", "pointwise": "copy"}[family]
    at = {name: np.ones(1) for name in (*dimensions(op), "groups")}
    words = {
        name: np.array(["bf16"])
        for name in ("dtype", "layout", "cache", "implementation", "causal", "direction", "fast_accumulate")
    }
    device = dict.fromkeys(
        ("device.compute_units", "device.memory_bandwidth", "device.cache_bytes", "device.matrix_flops.bf16"), 1.0
    )
    return tuple(_FAMILIES[family](op, at | words, device, np.ones(1)))


@cache
def code_hash() -> str:
    """sha256 of the code that turns a shape into a prior and features; a fit made with other code is not used."""
    digest = hashlib.sha256()
    for name in _CODE:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()


def _general(op: str, at: Shapes, device: DeviceSymbols, prior: FloatArray) -> dict[str, FloatArray]:
    """What every kernel has: work, traffic, intensity against the machine's balance, and the prior over the bound."""
    work = work_of(op, at, device)
    columns = {f"log {name}": np.log2(at[name]) for name in dimensions(op)}
    columns["log traffic"] = np.log2(work.traffic)
    columns["log cache fill"] = np.log2(work.traffic / device["device.cache_bytes"])
    columns["log prior"] = np.log2(prior)
    columns["log prior over bound"] = np.log2(prior / np.maximum(bound_of(op, at, device), 1e-9))
    columns["cold"] = np.asarray(at["cache"] == "cold", dtype=np.float64)
    if family_of(op) != "pointwise":
        balance = (work.flops / work.rate) / (work.traffic / device["device.memory_bandwidth"])
        columns |= {
            "log flops": np.log2(work.flops),
            "log intensity": np.log2(work.flops / work.traffic),
            "log balance": np.log2(balance),
        }
    return columns


def _gemm(op: str, at: Shapes, device: DeviceSymbols, prior: FloatArray) -> dict[str, FloatArray]:
    m, n, k = at["m"], at["n"], at["k"]
    columns = _general(op, at, device, prior)
    columns |= {
        "log n/k": np.log2(n / k),
        "log m/n": np.log2(m / n),
        "log m/k": np.log2(m / k),
        "log groups": np.log2(at["groups"]),
    }
    for rows, cols in _TILES:
        tiles = np.ceil(m / rows) * np.ceil(n / cols) * at["groups"]
        waves = tiles / device["device.compute_units"]
        columns[f"log waves {rows}x{cols}"] = np.log2(waves)
        columns[f"wave fill {rows}x{cols}"] = waves / np.ceil(waves)
        columns[f"tile fill {rows}x{cols}"] = m * n * at["groups"] / (tiles * rows * cols)
    for tile in (64, 128, 256):
        columns |= {f"m mod {tile}": m % tile, f"n mod {tile}": n % tile, f"k mod {tile}": k % tile}
    columns |= {"gcd n": np.log2(np.gcd(n.astype(np.int64), 4096)), "gcd k": np.log2(np.gcd(k.astype(np.int64), 4096))}
    words = {"fp8": ("dtype", "fp8"), "fp16": ("dtype", "fp16"), "dgrad": ("layout", "dgrad"), "wgrad": ("layout", "wgrad")}
    columns |= _flags(at, words)
    columns["slow accumulate"] = ((at["dtype"] == "fp8") & (at["fast_accumulate"] == "false")).astype(np.float64)
    return columns


def _attention(op: str, at: Shapes, device: DeviceSymbols, prior: FloatArray) -> dict[str, FloatArray]:
    columns = _general(op, at, device, prior)
    units = device["device.compute_units"]
    blocks = at["batch"] * at["heads"] * np.ceil(at["q_len"] / 128)
    waves = blocks / units
    columns |= {"log waves": np.log2(waves), "wave fill": waves / np.ceil(waves)}
    columns["log key blocks"] = np.log2(at["batch"] * at["kv_heads"] * np.ceil(at["kv_len"] / 128) / units)
    sequences = at["batch"] * at["kv_heads"] / units
    flash = at["implementation"] == "flash"
    parts = flash_parts(at["batch"] * at["kv_heads"] * np.ceil(at["q_len"] / 64), at["kv_len"], at["head_dim"], units)
    columns |= {"log sequences": np.log2(sequences), "log parts": np.log2(parts)}
    columns["padding"] = padded(op, at["head_dim"], flash) / at["head_dim"]
    columns["log share of queries"] = np.log2(at["heads"] / at["kv_heads"])
    columns["causal"] = (at["causal"] == "true").astype(np.float64)
    columns |= {phase: np.full(prior.shape, float(op == phase)) for phase in ATTENTION}
    kernels = {"flash": "flash", "efficient": "efficient", "unfused": "unfused", "grouped": "grouped"}
    columns |= _flags(at, {name: ("implementation", word) for name, word in kernels.items()})
    return columns


def _pointwise(op: str, at: Shapes, device: DeviceSymbols, prior: FloatArray) -> dict[str, FloatArray]:
    columns = _general(op, at, device, prior)
    waves = at["rows"] / device["device.compute_units"]
    columns |= {"log waves": np.log2(waves), "wave fill": waves / np.ceil(waves)}
    columns["backward"] = (at["direction"] == "backward").astype(np.float64)
    columns |= {name: np.full(prior.shape, float(op == name)) for name in ("copy", "rms_norm", "softmax", "layer_norm")}
    return columns


def _flags(at: Shapes, words: Mapping[str, tuple[str, str]]) -> dict[str, FloatArray]:
    return {name: np.asarray(at[column] == word, dtype=np.float64) for name, (column, word) in words.items()}


_FAMILIES: Mapping[str, Callable[[str, Shapes, DeviceSymbols, FloatArray], dict[str, FloatArray]]] = MappingProxyType(
    {"gemm": _gemm, "attention": _attention, "pointwise": _pointwise}
)
