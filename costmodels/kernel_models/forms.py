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
    element_bytes,
    family_of,
    format_rate,
    words_in,
    work_of,
)
from costmodels.kernels import smooth_max
from spaces.columns import FloatArray, Value

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
    """Blocks of queries, one a compute unit and wave, beside the traffic; heads of each padded width have a rate of their own.

    Causal blocks on the diagonal are computed whole. `block_ns` is paid by a block for each tile of keys, `row_ns` by a
    unit for each query row (its reduction and accumulation, mostly in backward), `split` is how many parts a decoding
    sequence is cut into at most.
    """
    flash = at["implementation"] == "flash"
    if op == "attention_decode" and flash.any():
        if flash.all():
            return _flash_decode(op, at, device, p)
        result = np.zeros(len(flash))
        for rows in (flash, ~flash):
            result[rows] = _attention(op, {name: values[rows] for name, values in at.items()}, device, p)
        return result
    batch, heads, q, length, width = (at[name] for name in ("batch", "heads", "q_len", "kv_len", "head_dim"))
    units = device["device.compute_units"]
    work = work_of(op, at, device)
    wide = padded(op, width, flash)
    memory = memory_time(work.traffic, at["cache"], device, p["bandwidth"], p["cache_fits"], p["cache_faster"])
    small = (width > 128) if op == "attention_backward" else flash & (width > 192)  # what shared memory leaves room for
    tile, cut = np.where(small, _FLASH_ROWS, _QUERY_TILE), np.ones(len(q))
    blocks, joined = batch * heads * np.ceil(q / tile), np.zeros(len(q))
    if op == "attention_decode":
        # sequences are cut so that the units are filled, to `split` parts at most
        parts = np.minimum(np.maximum(p["split"], 1.0), np.ceil(length / _QUERY_TILE))
        blocks = np.minimum(batch * heads * parts, np.maximum(batch * heads, units))
        joined = np.where(length > _QUERY_TILE, p["join_us"], 0.0)
        # wide heads stream at what a unit takes in of its padded tiles, whatever the memory gives
        waves = np.maximum(batch * at["kv_heads"] / units, 1.0)
        alone = (waves + (np.ceil(waves) - waves) * p["tail"]) / waves * work.traffic * wide / width / units
        memory = np.where(width > 128, smooth_max(memory, alone / (p["unit_gbps"] * 1e9)), memory)
    keys = np.ceil(length / _QUERY_TILE)
    if op == "attention_prefill" and flash.any():  # FlashAttention-2 cuts the keys where blocks of queries leave units idle
        cut = np.where(flash, flash_parts(batch * heads * np.ceil(q / _FLASH_ROWS), length, width, units), 1.0)
        tile = np.where(cut > 1, _FLASH_ROWS, tile)
        blocks, keys = batch * heads * np.ceil(q / tile) * cut, np.ceil(keys / cut)
        joined = np.where(cut > 1, p["join_us"], 0.0)
    diagonal = np.where(at["causal"] == "true", 1.0 + _QUERY_TILE / length, 1.0)
    waves = blocks / units
    filled = np.where(waves > 1, waves + (np.ceil(waves) - waves) * p["tail"], 1.0) / waves
    rate = work.rate * p["share"] * _of_width(width, p)
    steps = np.maximum(waves, 1.0) * keys * p["block_ns"] * 1e-9
    rows = batch * heads * q / units * p["row_ns"] * 1e-9 * (wide / 128 if op == "attention_backward" else 1.0)
    if op == "attention_backward":  # gradients of shared keys and values are written for each head, then summed
        summed = np.where(heads > at["kv_heads"], 8.0 * batch * heads * length * width, 0.0)
        rows = rows + summed / device["device.memory_bandwidth"] * p["summed"]
    compute = work.flops * wide / width * diagonal * filled / rate + steps
    if op != "attention_decode":  # causal blocks are unequal: the longest takes in all keys, whoever else is done
        passes = 10.0 if op == "attention_backward" else 4.0
        shared = np.where(flash & (op == "attention_prefill") & (blocks > units), 2.0, 1.0)  # two blocks share a unit, …
        shared = np.where((at["causal"] == "true") & (cut == 1), 0.5 + 0.5 * shared, shared)  # … the other half as long
        longest = passes * np.minimum(tile, q) * keys * _QUERY_TILE * wide / (rate / units) * shared * p["lone"]
        compute = smooth_max(compute, longest)
        late = (at["causal"] == "true") & (cut == 1) & (blocks > units)  # and some of the longest start last
        compute = compute + np.where(late, longest * p["late"], 0.0)
    start = p["overhead_us"] + joined + p["broad_us"] * np.maximum(wide / 128 - 1.0, 0.0)
    return np.asarray(start * 1e-6 + rows + smooth_max(compute, memory))


def padded(op: str, width: FloatArray, flash: NDArray[Any]) -> FloatArray:
    """The head width that a kernel computes, shape (n,), as steps in time over widths of 72 to 256 tell.

    cuDNN's and the others' go by 64, FlashAttention-2 has 96 as well; cuDNN decodes what is wider than 128 as 256.
    """
    by64 = np.ceil(width / 64) * 64
    if op == "attention_decode":
        by64 = np.where(~flash & (width > 128), np.ceil(width / 256) * 256, by64)
    return np.where(flash & (width > 64) & (width <= 96), 96.0, by64)


def _of_width(width: FloatArray, p: Parameters) -> FloatArray:
    """Rate of a kernel of each padded width against that of 128, shape (n,)."""
    return np.select([width <= 64, width <= 128, width <= 192], [p["narrow"], 1.0, p["broad"]], p["wide"])


def _flash_decode(op: str, at: Shapes, device: DeviceSymbols, p: Parameters) -> FloatArray:
    """FlashAttention-2 on one query: heads of a KV head are the rows of a block, and sequences are cut where blocks are few.

    Sequences left whole go through the kernel of prefill, whose tiles of 128 rows are all but empty: each unit then streams
    keys at `unit_gbps`, as fast as it multiplies them; cut ones at `cut_gbps` a unit, and the parts are joined afterwards
    for `join_us` and `join_ns` for each of them, one after another.
    """
    batch, heads, kv, length, width = (at[name] for name in ("batch", "heads", "kv_heads", "kv_len", "head_dim"))
    units, size = device["device.compute_units"], element_bytes(at["dtype"])
    work = work_of(op, at, device)
    sequences = batch * kv * np.ceil(heads / kv / _FLASH_ROWS)
    parts = flash_parts(sequences, length, width, units)
    cut = parts > 1
    wide = padded(op, width, np.full(len(width), True))
    tile = np.where(cut, _flash_keys(width), 64.0)
    keys = np.ceil(np.ceil(length / tile) / parts)
    blocks = sequences * parts
    together = np.clip(np.ceil(blocks / units), 1.0, np.where(cut | (width <= 128) | (width > 192), 2.0, 1.0))
    waves = blocks / (units * together)
    waves = np.where(waves > 1, waves + (np.ceil(waves) - waves) * p["tail"], 1.0)
    streamed = 2.0 * size * np.minimum(keys * tile, length) * wide * together
    unit = np.where(cut, p["cut_gbps"], p["unit_gbps"] * _of_width(width, p)) * 1e9
    alone = waves * (streamed / unit + keys * p["block_ns"] * 1e-9)
    joined = np.where(cut, 8.0 * batch * heads * width * parts, 0.0)
    memory = memory_time(work.traffic + joined, at["cache"], device, p["bandwidth"], p["cache_fits"], p["cache_faster"])
    start = p["overhead_us"] + np.where(cut, p["join_us"] + p["join_ns"] * 1e-3 * parts, 0.0)
    return np.asarray(start * 1e-6 + smooth_max(alone, memory))


_FLASH_ROWS = 64  # queries of a block where keys may be cut
_RESIDENT = 2  # blocks that the heuristic counts on a compute unit
_ENOUGH = 0.8  # of the places on all units: as many blocks are not cut
_GOOD = 0.85  # of the best filling of the last wave: the fewest parts that reach it are taken
_PARTS = 128  # at most


def _flash_keys(width: FloatArray) -> FloatArray:
    """Keys of a tile where FlashAttention-2 cuts them, shape (n,)."""
    return np.select([width <= 64, width <= 128], [256.0, 128.0], 64.0)


def flash_parts(blocks: FloatArray, length: FloatArray, width: FloatArray, units: Value) -> FloatArray:
    """Parts that FlashAttention-2 cuts the keys of `blocks` blocks of queries into, shape (n,).

    Its num_splits_heuristic (csrc/flash_attn/flash_api.cpp): one where blocks fill 0.8 of the places, else the fewest whose
    last wave is filled within 0.85 of the best; a number of parts that shortens none of them is passed over.
    """
    tiles = np.ceil(length / _flash_keys(width))
    places = np.broadcast_to(np.asarray(_RESIDENT * units, np.float64), np.shape(blocks))
    found = np.ones(np.shape(blocks))
    few = np.flatnonzero(blocks < _ENOUGH * places)
    if not len(few):
        return found
    tiles, places, own = tiles[few, None], places[few, None], blocks[few, None]
    parts = np.arange(1.0, min(_PARTS, float(tiles.max())) + 1.0)[None, :]
    shorter = (parts == 1) | (np.ceil(tiles / parts) != np.ceil(tiles / np.maximum(parts - 1, 1.0)))
    allowed = shorter & (parts <= np.minimum(tiles, places))
    waves = own * parts / places
    filling = np.where(allowed, waves / np.ceil(waves), 0.0)
    found[few] = parts[0, np.argmax(filling >= _GOOD * filling.max(axis=1, keepdims=True), axis=1)]
    return found


def _attention_form(share: float, bandwidth: float) -> Form:
    return Form(
        parameters=(
            Parameter(name="share", start=share, low=0.01, high=1.0),
            Parameter(name="narrow", start=0.8, low=0.3, high=1.2),
            Parameter(name="broad", start=0.9, low=0.3, high=1.5),
            Parameter(name="wide", start=0.9, low=0.3, high=1.5),
            Parameter(name="bandwidth", start=bandwidth, low=0.05, high=1.0),
            Parameter(name="overhead_us", start=5.0, low=0.2, high=60.0),
            Parameter(name="cache_fits", start=0.8, low=0.1, high=1.2),
            Parameter(name="cache_faster", start=1.5, low=1.0, high=5.0),
            Parameter(name="tail", start=0.3, low=0.0, high=1.0),
            Parameter(name="block_ns", start=20.0, low=0.0, high=3000.0),
            Parameter(name="row_ns", start=1.0, low=0.0, high=200.0),
            Parameter(name="split", start=4.0, low=1.0, high=64.0),
            Parameter(name="unit_gbps", start=22.0, low=5.0, high=100.0),
            Parameter(name="cut_gbps", start=30.0, low=5.0, high=200.0),
            Parameter(name="join_us", start=2.0, low=0.0, high=10.0),
            Parameter(name="join_ns", start=80.0, low=0.0, high=400.0),
            Parameter(name="summed", start=1.0, low=0.0, high=4.0),
            Parameter(name="lone", start=0.8, low=0.0, high=2.0),
            Parameter(name="late", start=0.2, low=0.0, high=1.0),
            Parameter(name="broad_us", start=2.0, low=0.0, high=20.0),
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
