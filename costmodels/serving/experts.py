"""Routed experts of a served step: which of them a batch reaches, the rows they take, and their products."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from costmodels.kernels import smooth_max
from costmodels.serving.calls import Call
from costmodels.serving.formats import compute_format
from costmodels.serving.local import PLACEMENT, Local
from costmodels.serving.products import weight_product
from spaces.columns import Value
from spaces.graph import Graph, Operator
from spaces.serving_plan import serving_code

_FP4, _INT4 = serving_code("precision", "nvfp4"), serving_code("precision", "int4")
_ROWS = 8  # rows of the smallest tile of a product on the matrix units


def assignments(local: Local) -> Value:
    """Tokens that the experts of one device take, all their copies counted, on the busiest rank; (c, T).

    With attention-data parallelism every rank's tokens come together. Routing at random, the busiest of `expert` ranks is
    above the mean by about √(2 ln ranks / mean); `stack.imbalance` is what skewed routing adds.
    """
    ranks = np.asarray(local["expert"], np.float64)
    mean = local.tokens * local["attention_data"] * local["experts_per_token"] / ranks
    busiest = 1.0 + np.sqrt(2.0 * np.log(np.maximum(ranks, 1.0)) / np.maximum(mean, 1.0))
    skew = np.where(ranks > 1, local["stack.imbalance"], 1.0)
    return np.minimum(mean * busiest * skew, local.tokens * local["attention_data"] * local["experts_per_token"])


def expert_rows(local: Local) -> Value:
    """Rows of the kernels beside an expert's products, (c, T): a rank's assignments, or all of them (`stack.whole_rows`) where
    ranks that hold other experts of the same tokens leave rows out of the products alone.
    """
    whole = (local["stack.whole_rows"] > 0) & (np.asarray(local["attention_data"]) == 1)
    return np.where(whole, local.tokens * local["experts_per_token"], assignments(local))


def experts_touched(local: Local) -> Value:
    """Experts of one device that a step's tokens reach: E·(1 − (1 − k/E)^B), of E on all devices; (c, T), at least 1.

    Where some experts are more popular than others, as a gamma distribution of shape a (`stack.popularity`), a token after the
    first finds one untouched with chance (1 + λ/a)^−a in place of exp(−λ), λ = −(B − 1)·ln(1 − k/E).
    """
    experts, chosen = (np.asarray(local[name], np.float64) for name in ("experts", "experts_per_token"))
    tokens = local.tokens * local["attention_data"]
    further = np.maximum(tokens - 1.0, 0.0) * -np.log1p(-np.minimum(chosen / experts, 1.0 - 1e-12))
    shape = local["stack.popularity"]
    missed = np.exp(-shape * np.log1p(further / shape))
    touched = np.where(tokens < 1.0, tokens * chosen, experts - (experts - chosen) * missed)
    return np.maximum(touched / local["expert"], np.minimum(1.0, touched))


def grouped(op: Operator, graph: Graph, local: Local) -> Iterator[Call]:
    """The products of the routed experts: one group an expert touched, its share of the tokens as rows."""
    reads = op.reads[0][1]
    n = sum(graph.elements([d for d in t.dims if d not in reads], PLACEMENT).evaluate(local) for t in op.writes)
    k = graph.elements(op.contracted, PLACEMENT).evaluate(local)
    # whole groups, and rows filled up to whole tiles: routed at random, half a tile more than the mean
    groups = np.maximum(np.round(experts_touched(local)), 1.0)
    few = np.asarray(local.tokens * local["attention_data"]) <= np.asarray(local["experts"])
    tile: Value = np.where(few, local["stack.expert_tile.fewer"], local["stack.expert_tile.more"])
    int4 = np.asarray(local["precision"]) == _INT4
    tile = np.where(int4 & (tile > _ROWS), marlin_tile(local), tile)
    tile = np.where(widened_fp4(local), fp4_tile(local), tile)
    mean = np.maximum(assignments(local) / groups, 1.0)
    rows = np.where(tile > _ROWS, np.maximum(mean + (tile - 1.0) / 2.0, tile), np.ceil(mean / _ROWS) * _ROWS)
    call = weight_product(local, rows, n, k, groups, quantised=True, experts=True)
    others = expert_rows(local) - assignments(local)  # rows of experts elsewhere: a kernel that takes all rows zeroes theirs
    if np.any(others > 0):
        yield Call(op="", floor=2.0 * others * n / (local["device.memory_bandwidth"] * local["kernel.pointwise.bandwidth"]))
    fed = np.where(tile > _ROWS, local["kernel.grouped.tile"], 0.0)  # of the matrix peak, what the cache feeds to small tiles
    widen = np.where(int4, local["kernel.grouped.widen.int4"], 0.0)
    widen = np.where(widened_fp4(local), local["kernel.grouped.widen.fp4"], widen)
    if not np.any(fed > 0) and not np.any(widen > 0):
        yield call
        return
    rate = np.maximum(local["device.matrix_flops.bf16"], local["device.matrix_flops.fp16"])
    fill = np.where(fed > 0, rows / np.maximum(fed, 1e-9), 0.0)
    floor = 2.0 * n * k * groups * smooth_max(fill, np.ceil(rows / tile) * widen) / rate
    yield Call(op=call.op, shape=call.shape, times=call.times, floor=smooth_max(call.floor, floor), cap=call.cap)


def widened_fp4(local: Local) -> Value:
    """Whether experts are in fp4 and the device has no such products."""
    _, widened = compute_format(local["precision"], local)
    return (np.asarray(local["precision"]) == _FP4) & widened


def fp4_tile(local: Local) -> Value:
    """Rows of a tile of the kernels that widen fp4 experts: an expert's mean share of the rows up to a power of two, from 16 to
    128 (block_m of matmul_ogs_details/opt_flags.py in triton_kernels, which vLLM, SGLang and TensorRT-LLM run on Hopper)."""
    return np.clip(_share_of_rows(local), 16.0, 128.0)


def marlin_tile(local: Local) -> Value:
    """Rows of a tile of Marlin's fused experts: likewise, from 8 to 64 (block_size_m in vllm's fused_marlin_moe.py)."""
    return np.clip(_share_of_rows(local), 8.0, 64.0)


def _share_of_rows(local: Local) -> Value:
    """An expert's mean share of the rows, up to a power of two."""
    mean = local.tokens * local["attention_data"] * local["experts_per_token"] / np.maximum(local["experts"], 1)
    return np.exp2(np.ceil(np.log2(np.maximum(mean, 1.0))))
