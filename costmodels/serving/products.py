"""Linear layers of a served step in the plan's format, as a stack's own kernels run them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from costmodels.serving.calls import Call
from costmodels.serving.formats import block_scaled_time, compute_format, dequantised_share, weight_bytes
from costmodels.serving.local import Local
from costmodels.serving.stack import ServingStack
from costmodels.serving.tiles import MEASURED, Tiles, tiled, tiles_of
from spaces.columns import Value
from spaces.serving_plan import serving_code

_FP4, _INT4 = serving_code("precision", "nvfp4"), serving_code("precision", "int4")


def product(local: Local, stack: ServingStack, m: Value, n: Value, k: Value, *, quantised: bool) -> Iterator[Call]:
    """One linear layer in the plan's format, as the stack's own kernels run it, and the adapters' two thin products."""
    yield weight_product(local, m, n, k, 1.0, quantised, own=tiles_of(stack.name) if quantised else {})
    if quantised:
        rank = np.asarray(local["lora_rank"], np.float64)
        if np.any(rank > 0):
            thin, times = np.maximum(rank, 1.0), np.where(rank > 0, 1.0, 0.0)
            many = np.minimum(np.maximum(np.asarray(local["adapters"], np.float64), 1.0), np.maximum(m, 1.0))
            own = {"m": np.maximum(m / many, 1.0), "groups": many, "cache": "cold"}  # as many as tokens come of at most
            yield Call(op="gemm", shape={**own, "n": thin, "k": k}, times=times)
            yield Call(op="gemm", shape={**own, "n": n, "k": thin}, times=times)


def weight_product(
    local: Local,
    m: Value,
    n: Value,
    k: Value,
    groups: Value,
    quantised: bool,
    experts: bool = False,
    own: Mapping[str, Tiles] | None = None,
) -> Call:
    """A (grouped) product; weights narrower than what they are multiplied in move fewer bytes and pay to be widened.

    Such a product is as slow as the cubic norm of one whose contraction is shortened to the narrow weights' bytes and of its
    own work at the share of that format's rate that kernels like Marlin reach. `own` are tiles of the server's kernels for fp8
    by kind of scale, where it does not run the kernel model's.
    """
    precision = local["precision"] if quantised else np.where(np.asarray(local["precision"]) == 0, 0, 2)
    words, narrow = compute_format(precision, local)
    eight = np.isin(words, ("fp8", "int8"))
    share = np.where(narrow, weight_bytes(precision) / np.where(eight, 1.0, 2.0), 1.0)
    rate = np.maximum(local["device.matrix_flops.bf16"], local["device.matrix_flops.fp16"]) * local["kernel.gemm.share.bf16"]
    widened: Value = dequantised_share()
    if experts:
        for code, word in ((_FP4, "fp4"), (_INT4, "int4")):
            widened = np.where(np.asarray(precision) == code, local[f"kernel.grouped.{word}"], widened)
    full: Value = rate
    if np.any(narrow & eight):
        fast = np.where(words == "int8", local["device.matrix_flops.int8"], local["device.matrix_flops.fp8"])
        full = np.where(eight, np.maximum(fast * local["kernel.gemm.share.fp8"], 1.0), rate)
    floor = np.where(narrow, 2.0 * m * n * k * groups / (full * widened), 0.0)
    shape = {"m": m, "n": n, "k": np.maximum(k * share, 1.0), "groups": groups, "dtype": words, "cache": "cold"}
    memory = groups * n * k * weight_bytes(precision) / local["device.memory_bandwidth"]
    compute = 2.0 * m * n * k * groups / rate
    hot = compute**3 / (compute**3 + memory**3)  # how far the product is bound by the matrix units, and so by power
    times = 1.0 + (local["stack.sustained"] - 1.0) * hot
    if experts:
        bound = local["stack.expert_time.memory"]
        busy = np.where(eight_bit_blocks(local), 1.0, local["stack.expert_time.compute"])
        times = times * (bound + (busy - bound) * hot)
    blocks = np.asarray(local["block_scaled"]) > 0
    kind = (own or {}).get("fp8_block" if np.any(blocks) else "fp8")
    known = (words == "fp8") & ~narrow & (np.asarray(local[MEASURED]) > 0) & (kind is not None)
    if np.any((words == "fp8") & blocks & ~known):
        narrow_hot = compute**3 / (compute**3 + (2.0 * memory) ** 3)  # fp8 products are twice as quick
        slowed = np.where((words == "fp8") & ~known, _block_scaled(local, experts) - 1.0, 0.0)
        times = times * (1.0 + slowed * narrow_hot)
    call = Call(op="gemm", shape=shape, times=times, floor=floor)
    return tiled(call, kind, local, m, n, k, known) if kind is not None and np.any(known) else call


def _block_scaled(local: Local, experts: bool) -> Value:
    """Time of a compute-bound fp8 product of the model's checkpoint over one with a scale a tensor."""
    own: Value = local["stack.block_scaled.dense"]
    if experts:
        whole = np.asarray(local["expert"]) > 1
        own = np.where(whole, local["stack.block_scaled.whole_experts"], local["stack.block_scaled.split_experts"])
    return np.where(np.asarray(local["block_scaled"]) > 0, block_scaled_time() * own, 1.0)


def eight_bit_blocks(local: Local) -> NDArray[np.bool_]:
    """Whether products run in fp8 with a scale a block."""
    words, _ = compute_format(local["precision"], local)
    return np.asarray((words == "fp8") & (np.asarray(local["block_scaled"]) > 0))
