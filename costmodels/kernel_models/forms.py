"""The physics of each family with a handful of bounded parameters: what `calibrated` fits and `learned` starts from.

Every form is an overhead plus the cubic norm of a compute and a memory time, grows with every dimension, and is a function
of completed shapes (operations.complete), the device's datasheet and a vector of parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.kernel_models.operations import (
    DeviceSymbols,
    Shapes,
    bound_of,
    complete,
    family_of,
    format_rate,
    words_in,
    work_of,
)
from costmodels.kernels import smooth_max
from spaces.columns import FloatArray

Parameters = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A fitted parameter: where the fit starts, and between which bounds physics leaves it; units by its name."""

    name: str
    start: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A family's formula: (op, completed shapes, device, parameters) -> seconds of shape (n,)."""

    parameters: tuple[Parameter, ...]
    time: Callable[[str, Shapes, DeviceSymbols, Parameters], FloatArray]

    def values(self, vector: NDArray[Any]) -> dict[str, float]:
        """A vector of parameters by name."""
        return {parameter.name: float(value) for parameter, value in zip(self.parameters, vector, strict=True)}


def _kept(traffic: FloatArray, cache: NDArray[Any], device: DeviceSymbols, share: float) -> FloatArray:
    """Share of the traffic served by the last-level cache: buffers used back to back that fit in `share` of it."""
    fill = traffic / (device["device.cache_bytes"] * share)
    return np.where(cache == "cold", 0.0, 1.0 / (1.0 + fill**8))


def memory_time(
    traffic: FloatArray, cache: NDArray[Any], device: DeviceSymbols, share: float, fits: float, faster: float
) -> FloatArray:
    """Seconds to move `traffic` bytes at `share` of the datasheet's bandwidth, `faster` times the datasheet within the cache.

    Rises with the traffic across the edge of the cache, because the cache is never slower than the memory.
    """
    kept = _kept(traffic, cache, device, fits)
    slow, quick = device["device.memory_bandwidth"] * share, device["device.memory_bandwidth"] * max(faster, share)
    return np.asarray(traffic * ((1.0 - kept) / slow + kept / quick))


_TILES = ((64, 64), (64, 128), (64, 256), (128, 64), (128, 128), (128, 192), (128, 256), (192, 128), (256, 128))
_SPLITS = (1, 2, 4)
_FULL_TILE = 128 * 256
_STEP = 64  # elements of k a tile takes in at once


def _gemm(op: str, at: Shapes, device: DeviceSymbols, p: Parameters) -> FloatArray:
    """The fastest of the tile sizes and splits of k that a library may choose from, beside the memory's time.

    A tile grid runs in waves over the compute units; of a last, partly filled wave a share `tail` is paid. Each wave has an
    overhead in proportion to the tile; splits of k cost a larger one, for the partial sums.
    """
    m, n, k, groups = (at[name] for name in ("m", "n", "k", "groups"))
    eight = np.isin(at["dtype"], ("fp8", "mxfp8", "int8", "fp4", "nvfp4"))
    rate = format_rate(at["dtype"], device) * np.where(eight, p["share_fp8"], p["share_bf16"])
    units = device["device.compute_units"]
    compute = np.full(np.shape(m), np.inf)
    for rows, cols in _TILES:
        for split in _SPLITS:
            waves = np.ceil(m / rows) * np.ceil(n / cols) * split * groups / units
            waves = np.where(waves > 1, waves + (np.ceil(waves) - waves) * p["tail"], 1.0)
            each = 2.0 * rows * cols * np.ceil(k / split / _STEP) * _STEP / (rate / units)
            overhead = (p["tile_us"] if split == 1 else p["split_us"]) * 1e-6 * rows * cols / _FULL_TILE
            compute = np.minimum(compute, waves * (each + overhead))
    traffic = work_of(op, at, device).traffic
    memory = memory_time(traffic, at["cache"], device, p["bandwidth"], p["cache_fits"], p["cache_faster"])
    return np.asarray(p["overhead_us"] * 1e-6 + p["step_ns"] * 1e-9 * k / _STEP + smooth_max(compute, memory))


GEMM = Form(
    parameters=(
        Parameter(name="share_bf16", start=0.75, low=0.3, high=1.0),
        Parameter(name="share_fp8", start=0.70, low=0.3, high=1.0),
        Parameter(name="bandwidth", start=0.85, low=0.4, high=1.0),
        Parameter(name="overhead_us", start=2.0, low=0.2, high=10.0),
        Parameter(name="cache_fits", start=0.8, low=0.1, high=1.2),
        Parameter(name="cache_faster", start=2.0, low=1.0, high=5.0),
        Parameter(name="tail", start=0.5, low=0.0, high=1.0),
        Parameter(name="tile_us", start=1.5, low=0.0, high=20.0),
        Parameter(name="split_us", start=15.0, low=0.0, high=60.0),
        Parameter(name="step_ns", start=8.0, low=0.0, high=60.0),
    ),
    time=_gemm,
)

_QUERY_TILE = 128


def _attention(op: str, at: Shapes, device: DeviceSymbols, p: Parameters) -> FloatArray:
    """Blocks of queries, one a compute unit and wave, beside the traffic; head_dim of 64 and below has a rate of its own.

    Causal blocks on the diagonal are computed whole. `block_ns` is paid by a block for each tile of keys, `row_ns` by a
    unit for each query row (its reduction and accumulation, mostly in backward), `split` is how many parts a decoding
    sequence is cut into at most, `unit_gbps` what a unit streams where sequences are left whole.
    """
    batch, heads, q, length, width = (at[name] for name in ("batch", "heads", "q_len", "kv_len", "head_dim"))
    units = device["device.compute_units"]
    work = work_of(op, at, device)
    memory = memory_time(work.traffic, at["cache"], device, p["bandwidth"], p["cache_fits"], p["cache_faster"])
    blocks = batch * heads * np.ceil(q / _QUERY_TILE)
    if op == "attention_decode":
        # sequences are cut so that the units are filled, to `split` parts at most
        parts = np.minimum(np.maximum(p["split"], 1.0), np.ceil(length / _QUERY_TILE))
        blocks = np.minimum(batch * heads * parts, np.maximum(batch * heads, units))
    keys = np.ceil(length / _QUERY_TILE)
    if op == "attention_prefill":  # FlashAttention-2 cuts the keys where blocks of queries leave units idle
        few = (at["implementation"] == "flash") & (blocks < _ENOUGH * units)
        cut = np.where(few, np.clip(np.floor(units / blocks), 1.0, keys), 1.0)
        blocks, keys = blocks * cut, np.ceil(keys / cut)
    diagonal = np.where(at["causal"] == "true", 1.0 + _QUERY_TILE / length, 1.0)
    waves = blocks / units
    filled = np.where(waves > 1, waves + (np.ceil(waves) - waves) * p["tail"], 1.0) / waves
    rate = work.rate * p["share"] * np.where(width <= 64, p["narrow"], 1.0)
    steps = np.maximum(waves, 1.0) * keys * p["block_ns"] * 1e-9
    rows = batch * heads * q / units * p["row_ns"] * 1e-9
    compute = work.flops * diagonal * filled / rate + steps
    if op == "attention_decode":
        # sequences that fill the units are not cut, and each streams its keys alone
        waves = np.maximum(np.ceil(batch * at["kv_heads"] / (_RESIDENT * units)), 1.0)
        alone = waves * work.traffic / (batch * at["kv_heads"]) * _RESIDENT / (p["unit_gbps"] * 1e9)
        memory = np.where(uncut(at, device), np.maximum(memory, alone), memory)
    return np.asarray(p["overhead_us"] * 1e-6 + rows + smooth_max(compute, memory))


_RESIDENT = 2  # blocks of keys that a compute unit holds at once
_ENOUGH = 0.8  # of the places on all units: a library that finds as many sequences does not cut them (FlashAttention-2)


def uncut(at: Shapes, device: DeviceSymbols) -> NDArray[np.bool_]:
    """Whether sequences times KV heads fill the compute units, so that decoding need not cut sequences, shape (n,)."""
    return np.asarray(at["batch"] * at["kv_heads"] >= _ENOUGH * _RESIDENT * device["device.compute_units"])


def _attention_form(share: float, bandwidth: float) -> Form:
    return Form(
        parameters=(
            Parameter(name="share", start=share, low=0.01, high=1.0),
            Parameter(name="narrow", start=0.8, low=0.3, high=1.2),
            Parameter(name="bandwidth", start=bandwidth, low=0.05, high=1.0),
            Parameter(name="overhead_us", start=5.0, low=0.2, high=60.0),
            Parameter(name="cache_fits", start=0.8, low=0.1, high=1.2),
            Parameter(name="cache_faster", start=1.5, low=1.0, high=5.0),
            Parameter(name="tail", start=0.3, low=0.0, high=1.0),
            Parameter(name="block_ns", start=20.0, low=0.0, high=3000.0),
            Parameter(name="row_ns", start=1.0, low=0.0, high=200.0),
            Parameter(name="split", start=4.0, low=1.0, high=64.0),
            Parameter(name="unit_gbps", start=22.0, low=5.0, high=100.0),
        ),
        time=_attention,
    )


ATTENTION = _attention_form(0.5, 0.8)


def _pointwise(op: str, at: Shapes, device: DeviceSymbols, p: Parameters) -> FloatArray:
    """Traffic at the operator's own bandwidth, or elements at the rate a unit issues them, which memory does not speed up.

    A single row is handled by one compute unit at `unit` times its share of the bandwidth. Where rows are reduced, each costs
    its unit `row_ns` beside its elements, for it waits until the row's sum is known.
    """
    work = work_of(op, at, device)
    memory = memory_time(work.traffic, at["cache"], device, p["bandwidth"], p["cache_fits"], p["cache_faster"])
    if op == "copy":
        return np.asarray(p["overhead_us"] * 1e-6 + memory)
    units = device["device.compute_units"]
    issue = at["rows"] * at["cols"] / units * p["element_ps"] * 1e-12
    if op in _REDUCED:
        issue = issue + at["rows"] / units * p["row_ns"] * 1e-9
    one = work.traffic / np.maximum(at["rows"], 1.0) / (device["device.memory_bandwidth"] * p["unit"] / units)
    return np.asarray(p["overhead_us"] * 1e-6 + smooth_max(smooth_max(memory, issue), one))


_REDUCED = frozenset({"rms_norm", "layer_norm"})
"""Operators whose rows each wait for a sum; a softmax is told apart by its kernels instead."""
_WARP, _REGISTERS = 2048, 8192
"""Elements of the widest softmax row that PyTorch leaves to one warp, and to the registers of one block of 1,024 threads; wider
rows go through shared memory (aten/src/ATen/native/cuda/SoftMax.cu)."""

POINTWISE = Form(
    parameters=(
        Parameter(name="bandwidth", start=0.8, low=0.02, high=1.0),
        Parameter(name="overhead_us", start=2.0, low=0.2, high=30.0),
        Parameter(name="cache_fits", start=0.8, low=0.1, high=1.2),
        Parameter(name="cache_faster", start=1.5, low=1.0, high=5.0),
        Parameter(name="unit", start=3.0, low=0.05, high=100.0),
        Parameter(name="element_ps", start=50.0, low=0.0, high=5000.0),
        Parameter(name="row_ns", start=100.0, low=0.0, high=5000.0),
    ),
    time=_pointwise,
)

FORMS: Mapping[str, Form] = MappingProxyType({"gemm": GEMM, "attention": ATTENTION, "pointwise": POINTWISE})
"""The form of each family."""

# PyTorch's names of the kernels, and the field's
_KERNELS: Mapping[str, str] = MappingProxyType(
    {
        "flash": "flash",
        "flash2": "flash",
        "fa2": "flash",
        "cudnn": "cudnn",
        "flash3": "cudnn",
        "fa3": "cudnn",
        "efficient": "efficient",
        "flash1": "efficient",
        "unfused": "unfused",
        "grouped": "grouped",
    }
)
IMPLEMENTATIONS = (*dict.fromkeys(_KERNELS), "default")
"""Names an attention implementation goes by."""


def kernel_name(implementation: str, device: DeviceSymbols) -> str:
    """The measured kernel an implementation's name stands for; PyTorch's default is cuDNN on devices with fp8, else flash.

    flash2 is PyTorch's `flash` backend, flash3 cuDNN's kernel (of the same generation), flash1 the memory-efficient one.
    """
    if implementation == "default":
        return "cudnn" if np.all(device.get("device.matrix_flops.fp8", 0.0)) else "flash"
    return _KERNELS.get(implementation, implementation)


def variant(op: str, at: Shapes, device: DeviceSymbols) -> NDArray[Any]:
    """Which set of parameters each row takes, shape (n,): the operator, with the kernel and the direction."""
    n = len(at["dtype"])
    if op == "gemm":
        return np.full(n, "gemm")
    if "direction" in at and "rows" in at:
        kinds = np.char.add(f"{op}.", at["direction"])
        if op == "softmax":
            cols = at["cols"]
            kernel = np.where(cols <= _WARP, ".warp", np.where(cols <= _REGISTERS, ".registers", ".shared"))
            kinds = np.char.add(kinds, np.where(at["direction"] == "forward", kernel, ""))
        return np.asarray(kinds)
    kernels = at["implementation"]
    names = {word: f"{op}.{kernel_name(word, device)}" for word in words_in(kernels)}
    result = np.full(n, "", dtype="<U64")
    for word, name in names.items():
        result[kernels == word] = name
    if op == "attention_decode":
        # products batched over sequences and heads of a cache laid out by token: with several of both it is copied first
        copied = (kernels == "grouped") & (at["batch"] > 1) & (at["kv_heads"] > 1)
        result = np.where(copied, np.char.add(result, ".copied"), result)
    return np.asarray(result)


def prepared(op: str, shapes: Shapes, device: DeviceSymbols) -> dict[str, NDArray[Any]]:
    """Completed shapes, attention implementations under their measured kernels' names. Raises as `complete` does."""
    at = dict(complete(op, shapes))
    if family_of(op) == "attention":
        words = at["implementation"].tolist()
        names = {word: kernel_name(word, device) for word in set(words)}
        at["implementation"] = np.array([names[word] for word in words], dtype=np.str_)
    if op == "copy":  # contiguous: only its size matters
        at |= {"rows": np.ones_like(at["rows"]), "cols": at["rows"] * at["cols"]}
    return at


def prior_time(op: str, at: Shapes, device: DeviceSymbols, variants: Mapping[str, Parameters]) -> FloatArray:
    """Seconds by the family's form and each row's own parameters, shape (n,). Raises KeyError for an unknown variant."""
    form, kinds = FORMS[family_of(op)], variant(op, at, device)
    result = np.zeros(len(kinds))
    for kind in words_in(kinds):
        rows = np.flatnonzero(kinds == kind)
        some = {name: values[rows] for name, values in at.items()}
        result[rows] = form.time(op, some, device, variants[kind])
    return np.maximum(result, bound_of(op, at, device))
