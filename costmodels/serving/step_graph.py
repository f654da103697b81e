"""Kernels of one serving step, from the same block graphs that training reads, at the local shapes of an engine.

Four groups, each a function of one or two totals of the batch: what grows with new tokens, with sampled sequences, decode
attention, prefill attention. Multi-head latent attention is expanded in prefill and absorbed in decode (DeepSeek-V2 §2.1.2):
the projections around it are the same work either way, attention itself is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.block_table import graphs
from costmodels.constants import DATA
from costmodels.kernels import smooth_max
from costmodels.serving.calls import Call
from costmodels.serving.exchanges import expert_exchange, reduction, send
from costmodels.serving.formats import block_scaled_time, cache_bytes, compute_format, dequantised_share, weight_bytes
from costmodels.serving.paged_attention import (
    blocks_time,
    counted_share,
    narrow,
    prompts_beside,
    prompts_slower,
    start_time,
    windowed,
)
from costmodels.serving.stack import ServingStack
from costmodels.serving.tiles import MEASURED, Tiles, tiled, tiles_of
from spaces.architecture import Architecture
from spaces.columns import Bindings, Value
from spaces.facts import facts_in
from spaces.graph import Graph, Kind, Operator, Placement
from spaces.serving_plan import serving_code

PLACEMENT = Placement(
    {
        "heads": ("tensor",),
        "kv_heads": ("tensor",),
        "ffn": ("tensor", "attention_data"),
        "shared_ffn": ("tensor", "attention_data"),
        "vocab": ("tensor",),
        "experts": ("expert",),
        "moe_ffn": ("expert_tensor",),
    }
)
"""Which mesh axes shard a dimension of a served model."""
_FP4, _INT4 = serving_code("precision", "nvfp4"), serving_code("precision", "int4")
_SMALL = 2.0e-6  # s of a kernel that does next to nothing (costmodels/data/measurements: the smallest pointwise operands)
_ROWS = 8  # rows of the smallest tile of a product on the matrix units
_COLLECTIVES = frozenset({"all_reduce", "all_gather", "reduce_scatter"})
_DENSE_WIDTHS = frozenset({"ffn", "shared_ffn"})
_FIXED = {
    "micro_batch": 1,
    "context": 1,
    "stream_shards": 1,
    "activation_bytes": 2.0,
    "dispatch_bytes": 2.0,
    "logits_bytes": 2.0,
}
_CLASS = {
    Kind.NORM: "norm",
    Kind.ACTIVATION: "activation",
    Kind.MULTIPLY: "multiply",
    Kind.ADD: "add",
    Kind.ROTARY: "rotary",
    Kind.ROUTE: "route",
}


@dataclass(frozen=True, slots=True, eq=False)
class Local:
    """Symbols of c engines as (c, 1) columns beside a grid of step totals; `tokens` stand for the sequence of a graph."""

    at: Bindings
    tokens: Value

    def __getitem__(self, symbol: str) -> Value:
        if symbol == "sequence":
            return self.tokens
        if symbol in _FIXED:
            return _FIXED[symbol]
        return column(self.at[symbol])


def column(value: Value) -> Value:
    """A scalar as it is, an array (c,) as (c, 1)."""
    return value[:, None] if isinstance(value, np.ndarray) and value.ndim == 1 else value


def layer_graphs(architecture: Architecture, stack: ServingStack) -> tuple[tuple[str, Graph, int], ...]:
    """(kind, block graph, how many layers are of it), in order of first appearance."""
    model = graphs(architecture, stack.traits)
    count = Counter(model.order)
    return tuple((kind, graph, count[kind]) for kind, graph in model.layers.items())


# ---- what grows with new tokens ----------------------------------------------------------------------------------------


def token_calls(architecture: Architecture, stack: ServingStack, at: Bindings, tokens: Value) -> Iterator[Call]:
    """Linear layers, experts, pointwise operators and collectives of all layers, and the embedding; grid (T,)."""
    local = Local(at, tokens)
    for _, graph, count in layer_graphs(architecture, stack):
        layer = [call for op in graph.operators for call in operator_calls(op, graph, stack, local)]
        layer += _cache_write(architecture, stack, local)
        layer.append(reduction(local, local["tensor"], tokens * 2.0 * local["hidden"]))
        parts = {"latent": architecture.kv_lora_rank > 0, "experts": _has_experts(graph)}
        layer += expert_exchange(local, tokens, experts=parts["experts"])
        yield from (_repeated(call, count) for call in (*layer, gaps(layer, local, parts)))
    yield from _stream(stack, "embedding", tokens, local["hidden"])
    yield reduction(local, local["tensor"], tokens * 2.0 * local["hidden"], times=local["stack.embedding_sharded"])
    # the stream and what is added to it are sent apart (fused_add_rms_norm leaves them so)
    yield send(local, tokens * 2.0 * local["hidden"], 2.0 * (np.asarray(local["pipeline"], np.float64) - 1.0))
    stages = np.where(np.asarray(local["pipeline"]) > 1, np.asarray(local["pipeline"], np.float64), 0.0)
    flying = np.where(np.asarray(tokens) > 1.0, stages, 1.0)  # requests are shared evenly: one of several is not alone
    yield Call(op="", floor=stages * (local["stack.pipeline.stage"] + flying * local["stack.pipeline.ring"]))


def gaps(layer: Sequence[Call], local: Local, parts: Mapping[str, bool]) -> Call:
    """What passes between the end of one kernel of a layer and the start of the next that waits for it, attention included.

    `parts` says whether the layer has latent attention and experts: both start small kernels of their own (splits, rotations
    and absorptions; counting, sorting and scattering tokens) that cost their start alone. Ranks wait for the slowest at every
    collective.
    """
    started = sum((np.where(np.asarray(call.times) > 0, kernels_of(call), 0.0) for call in layer), np.asarray(1.0))
    met = sum((np.where(np.asarray(call.times) > 0, 1.0, 0.0) for call in layer if call.op in _COLLECTIVES), np.asarray(0.0))
    small: Value = sum((local[f"stack.small_kernels.{part}"] for part, there in parts.items() if there), np.asarray(0.0))
    if parts["experts"]:
        small = small + np.where(_widened_fp4(local), local["stack.small_kernels.widened"], 0.0)
    waited: Value = met * local["stack.rank_wait"]
    if parts["experts"]:
        held = np.asarray(local["experts"], np.float64) / local["expert"]
        waited = waited + np.where(_eight_bit_blocks(local), local["stack.held_expert_time"] * held, 0.0)
    return Call(op="", floor=started * local["stack.kernel_gap"] + small * (local["stack.kernel_gap"] + _SMALL) + waited)


def kernels_of(call: Call) -> float:
    """Kernels behind a call: silu and its product by the gate are two, copies of keys and values as well; part of one none."""
    if not call.op:
        return 0.0
    copies = max(round(float(np.max(call.times, initial=0.0))), 1) if call.op == "copy" else 1.0
    return {"chunk_silu_mul": 2.0}.get(call.op, copies)


def _eight_bit_blocks(local: Local) -> NDArray[np.bool_]:
    """Whether products run in fp8 with a scale a block."""
    words, _ = compute_format(local["precision"], local)
    return np.asarray((words == "fp8") & (np.asarray(local["block_scaled"]) > 0))


def _has_experts(graph: Graph) -> bool:
    return any(op.kind is Kind.GROUPED_GEMM for op in graph.operators)


def _repeated(call: Call, count: Value) -> Call:
    return Call(op=call.op, shape=call.shape, times=call.times * count, floor=call.floor, cap=call.cap, own=call.own)


def operator_calls(op: Operator, graph: Graph, stack: ServingStack, local: Local) -> Iterator[Call]:
    """The kernels of one operator of a layer."""
    dims = {dim for _, wanted in op.reads for dim in wanted} | {dim for t in op.writes for dim in t.dims}
    gathered = bool(dims & _DENSE_WIDTHS)
    here = Local(local.at, local.tokens * local["attention_data"]) if gathered else local
    routed = "per_expert" in dims
    if op.kind is Kind.GEMM:
        reads = op.reads[0][1]
        m = graph.elements([d for d in reads if d not in op.contracted], PLACEMENT).evaluate(here)
        n = sum(graph.elements([d for d in t.dims if d not in reads], PLACEMENT).evaluate(here) for t in op.writes)
        k = graph.elements(op.contracted, PLACEMENT).evaluate(here)
        yield from product(here, stack, m, n, k, quantised=op.quantised)
    elif op.kind is Kind.GROUPED_GEMM:
        yield from _grouped(op, graph, local)
    elif op.kind is Kind.PERMUTE:
        if op.name in ("permute", "combine"):
            wider = np.where(_eight_bit_blocks(local), local["stack.permute_blocks"], 1.0)
            yield from _stream(stack, "permute", expert_rows(local), local["hidden"] * wider)
    elif routed and op.kind in _CLASS:
        yield from _stream(stack, _CLASS[op.kind], expert_rows(local), graph.local("moe_ffn", PLACEMENT).evaluate(local))
    elif op.kind in _CLASS:
        wide = [dim for dim in op.reads[0][1] if dim not in ("stream", "tokens", "keys")]
        rows: Value = here.tokens
        if op.kind is Kind.NORM and "heads" in "".join(wide):
            rows, wide = rows * graph.elements(wide[:1], PLACEMENT).evaluate(here), wide[1:]
        named = "layer_norm" if op.kind is Kind.NORM and len(op.writes) > 2 else _CLASS[op.kind]
        fused = op.kind is Kind.NORM and wide == ["hidden"]
        if op.kind is Kind.ROTARY:
            width = sum(graph.elements(d[1:], PLACEMENT).evaluate(here) for _, d in op.reads)
        else:
            width = graph.elements(wide, PLACEMENT).evaluate(here)
        for call in _stream(stack, named, rows, width):
            yield _repeated(call, np.where(_normed_in_sum(here), 0.0, 1.0)) if fused else call


def _normed_in_sum(local: Local) -> Value:
    """Whether the sum over tensor ranks adds to the stream, norms it and casts the norm besides (`stack.normed_in_sum`): the
    server's own does, NCCL's of large messages does not."""
    summed = (np.asarray(local["tensor"]) > 1) & (np.asarray(local["attention_data"]) == 1)
    small = local.tokens * 2.0 * local["hidden"] <= local["stack.custom_all_reduce.limit"]
    return summed & small & (np.asarray(local["pipeline"]) == 1) & (np.asarray(local["stack.normed_in_sum"]) > 0)


def product(local: Local, stack: ServingStack, m: Value, n: Value, k: Value, *, quantised: bool) -> Iterator[Call]:
    """One linear layer in the plan's format, as the stack's own kernels run it, and the adapters' two thin products."""
    yield _product(local, m, n, k, 1.0, quantised, own=tiles_of(stack.name) if quantised else {})
    if quantised:
        rank = np.asarray(local["lora_rank"], np.float64)
        if np.any(rank > 0):
            thin, times = np.maximum(rank, 1.0), np.where(rank > 0, 1.0, 0.0)
            many = np.minimum(np.maximum(np.asarray(local["adapters"], np.float64), 1.0), np.maximum(m, 1.0))
            own = {"m": np.maximum(m / many, 1.0), "groups": many, "cache": "cold"}  # as many as tokens come of at most
            yield Call(op="gemm", shape={**own, "n": thin, "k": k}, times=times)
            yield Call(op="gemm", shape={**own, "n": n, "k": thin}, times=times)


def _product(
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
        busy = np.where(_eight_bit_blocks(local), 1.0, local["stack.expert_time.compute"])
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


def _grouped(op: Operator, graph: Graph, local: Local) -> Iterator[Call]:
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
    tile = np.where(_widened_fp4(local), fp4_tile(local), tile)
    mean = np.maximum(assignments(local) / groups, 1.0)
    rows = np.where(tile > _ROWS, np.maximum(mean + (tile - 1.0) / 2.0, tile), np.ceil(mean / _ROWS) * _ROWS)
    call = _product(local, rows, n, k, groups, quantised=True, experts=True)
    others = expert_rows(local) - assignments(local)  # rows of experts elsewhere: a kernel that takes all rows zeroes theirs
    if np.any(others > 0):
        yield Call(op="", floor=2.0 * others * n / (local["device.memory_bandwidth"] * local["kernel.pointwise.bandwidth"]))
    fed = np.where(tile > _ROWS, local["kernel.grouped.tile"], 0.0)  # of the matrix peak, what the cache feeds to small tiles
    widen = np.where(int4, local["kernel.grouped.widen.int4"], 0.0)
    widen = np.where(_widened_fp4(local), local["kernel.grouped.widen.fp4"], widen)
    if not np.any(fed > 0) and not np.any(widen > 0):
        yield call
        return
    rate = np.maximum(local["device.matrix_flops.bf16"], local["device.matrix_flops.fp16"])
    fill = np.where(fed > 0, rows / np.maximum(fed, 1e-9), 0.0)
    floor = 2.0 * n * k * groups * smooth_max(fill, np.ceil(rows / tile) * widen) / rate
    yield Call(op=call.op, shape=call.shape, times=call.times, floor=smooth_max(call.floor, floor), cap=call.cap)


def _widened_fp4(local: Local) -> Value:
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


def _stream(stack: ServingStack, named: str, rows: Value, width: Value) -> Iterator[Call]:
    """A pointwise kernel over (rows, width), as the stack runs that class."""
    kernel = stack.streams[named]
    if kernel.op == "none":
        return
    if kernel.op == "two_copies":
        yield Call(op="copy", shape={"rows": rows, "cols": width / 2.0}, times=2.0)
    elif kernel.op == "copy":
        yield Call(op="copy", shape={"rows": rows, "cols": np.maximum(width * kernel.passes / 2.0, 1.0)})
    else:
        yield Call(op=kernel.op, shape={"rows": rows, "cols": width})


def _cache_write(architecture: Architecture, stack: ServingStack, local: Local) -> Iterator[Call]:
    """New keys and values into the cache, and what the stack spends to quantise activations for narrow products."""
    yield from _stream(stack, "cache", local.tokens, values_per_token(architecture, local))
    words, _ = compute_format(local["precision"], local)
    narrow = np.isin(words, ("fp8", "int8", "nvfp4"))
    blocks = np.asarray(local["block_scaled"]) > 0
    casts: Value = np.where(blocks, local["stack.quantise_kernels.blocks"], local["stack.quantise_kernels.tensor"])
    casts = np.where(_normed_in_sum(local) & ~blocks, np.maximum(casts - 2.0, 0.0), casts)  # those of the two norms
    times = np.where(narrow, casts, 0.0)
    if np.any(times > 0):
        yield Call(op="quantise_fp8", shape={"rows": local.tokens, "cols": local["hidden"]}, times=times)


def values_per_token(architecture: Architecture, local: Local) -> Value:
    """Values that one layer caches for a token on one device.

    Key and value heads are divided among tensor ranks and replicated when there are fewer; the latent of multi-head latent
    attention is held whole by each.
    """
    if architecture.kv_lora_rank:
        return np.asarray(local["kv_lora_rank"] + local["qk_rope_head_dim"], np.float64)
    return 2.0 * -(-np.asarray(local["kv_heads"]) // local["tensor"]) * local["head_dim"]


# ---- what grows with sampled sequences ---------------------------------------------------------------------------------


def sequence_calls(architecture: Architecture, stack: ServingStack, at: Bindings, sequences: Value) -> Iterator[Call]:
    """Last norm, head, collection of its logits and the choice of a token; grid (S,)."""
    local = Local(at, sequences)
    vocab = -(-np.asarray(local["vocab"]) // local["tensor"])
    named = "layer_norm" if architecture.norm == "layernorm" else "norm"
    yield from _stream(stack, named, sequences, local["hidden"])
    yield _product(local, sequences, vocab, local["hidden"], 1.0, quantised=False)
    ranks = np.asarray(local["tensor"], np.float64)
    collected = np.where((ranks > 1) & (np.asarray(local["stack.gather_logits"]) > 0), 1.0, 0.0)
    yield reduction(local, ranks, sequences * 2.0 * local["vocab"], kind="all_gather", times=collected)
    yield Call(op="", floor=local["stack.exposed"] + local["stack.exposed_per_sequence"] * sequences)
    kernel = stack.streams["sample"]
    if kernel.op != "none":
        yield Call(op=kernel.op, shape={"rows": sequences, "cols": local["vocab"]})
    else:
        yield Call(op="copy", shape={"rows": sequences, "cols": local["vocab"] * local["stack.sample_passes"] / 2.0})
    yield Call(op="", floor=local["stack.top_p.asked"] * local["vocab"] / 131072.0 * _top_p(local, sequences))


def _top_p(local: Local, sequences: Value) -> Value:
    """Seconds that keeping the likeliest tokens up to a share of the probability takes, of 131,072 logits a sequence."""
    rows = np.asarray(sequences, np.float64)
    waves = np.ceil(rows / local["stack.top_p.rows"]) * local["stack.top_p.wave"]
    return np.where(rows < local["stack.top_p.from"], local["stack.top_p.start"] + local["stack.top_p.row"] * rows, waves)


# ---- attention ---------------------------------------------------------------------------------------------------------


def decode_calls(
    architecture: Architecture, stack: ServingStack, at: Bindings, requests: Value, cached: Value
) -> Iterator[Call]:
    """Attention of one new token of each request over its cache, all layers; grid (R, K), `cached` tokens in all."""
    wide = _Wide(at)
    length = np.maximum(cached / requests, 1.0)
    for kind, _, count in layer_graphs(architecture, stack):
        seen = np.minimum(length, wide["sliding_window"]) if kind.endswith("-window") else length
        if architecture.kv_lora_rank:
            yield _repeated(_latent(wide, requests, seen), count)
            continue
        heads, kv_heads = (-(-np.asarray(wide[name]) // wide["tensor"]) for name in ("heads", "kv_heads"))
        rate = np.maximum(wide["device.matrix_flops.bf16"], wide["device.matrix_flops.fp16"])
        work = 4.0 * requests * heads * seen * wide["head_dim"]
        floor = np.where(narrow(wide), work / (rate * wide["kernel.attention.forward"]), 0.0)
        floor = smooth_max(floor, blocks_time(wide, requests, length, heads, kv_heads))
        shape = {
            "batch": requests,
            "heads": heads,
            "kv_heads": kv_heads,
            "q_len": 1.0,
            "kv_len": np.maximum(np.round(seen * counted_share(wide)), 1.0),
            "head_dim": wide["head_dim"],
            "implementation": stack.attention["decode"],
            "cache": "cold",
        }
        times = count * windowed(wide, length, seen)
        yield Call(op="attention_decode", shape=shape, times=times, floor=floor)
        yield Call(op="", floor=start_time(wide), times=times)


def _latent(wide: _Wide, requests: Value, seen: Value) -> Call:
    """Absorbed latent attention: every head reads the one latent, so work grows with heads and traffic does not."""
    facts = _latent_facts()
    latent, rope = wide["kv_lora_rank"], wide["qk_rope_head_dim"]
    heads = -(-np.asarray(wide["heads"]) // wide["tensor"])
    cached = requests * seen
    traffic = cached * (latent + rope) * cache_bytes(wide["kv_precision"])
    work = 2.0 * cached * heads * (2.0 * latent + rope)
    rate = np.maximum(wide["device.matrix_flops.bf16"], wide["device.matrix_flops.fp16"]) * facts["compute"]
    memory = traffic / (wide["device.memory_bandwidth"] * facts["bandwidth"])
    begun = requests * np.ceil(heads / facts["heads"]) * facts["request"]
    return Call(op="", floor=facts["overhead"] + np.cbrt((work / rate) ** 3 + memory**3 + begun**3))


def prefill_calls(
    architecture: Architecture, stack: ServingStack, at: Bindings, queries: Value, pairs: Value
) -> Iterator[Call]:
    """Attention of prompt chunks, all layers; grid (Q, P): `queries` new tokens that see `pairs` keys together.

    As many whole prompts as have that many pairs (each causal, half its square); a chunk that sees more than its own
    triangle is one product over the mean number of keys a query sees.
    """
    wide = _Wide(at)
    mean = np.maximum(pairs / queries, 1.0)
    for kind, _, count in layer_graphs(architecture, stack):
        seen = np.minimum(mean, wide["sliding_window"]) if kind.endswith("-window") else mean
        whole = seen <= queries / 2.0
        length = np.where(whole, 2.0 * seen, queries)
        heads, kv_heads = (-(-np.asarray(wide[name]) // wide["tensor"]) for name in ("heads", "kv_heads"))
        width, factor = wide["head_dim"], 1.0
        if architecture.kv_lora_rank:
            factor = (wide["head_dim"] + wide["v_head_dim"]) / (2.0 * 128.0)
            width = 128.0
        shape = {
            "batch": np.maximum(queries / length, 1.0),
            "heads": heads,
            "kv_heads": heads if architecture.kv_lora_rank else kv_heads,
            "q_len": np.maximum(np.round(length), 1.0),
            "kv_len": np.maximum(np.round(np.where(whole, 2.0 * seen, seen)), 1.0),
            "head_dim": width,
            "causal": np.where(whole, "true", "false"),
            "implementation": stack.attention["prefill"],
            "cache": "cold",
        }
        if architecture.kv_lora_rank:
            yield Call(op="attention_prefill", shape=shape, times=count * factor)
            continue
        yield Call(op="attention_prefill", shape=shape, times=count * prompts_slower(wide, seen < mean))
        yield Call(op="", floor=prompts_beside(wide, queries, heads), times=count)


@dataclass(frozen=True, slots=True, eq=False)
class _Wide:
    """Symbols of c engines as (c, 1, 1)."""

    at: Bindings

    def __getitem__(self, symbol: str) -> Value:
        value = self.at[symbol]
        return value[:, None, None] if isinstance(value, np.ndarray) and value.ndim == 1 else value


@cache
def _latent_facts() -> Mapping[str, float]:
    with (DATA / "latent_attention.yaml").open(encoding="utf-8") as file:
        facts: dict[str, Any] = facts_in(file.read())
    return {name: float(entry["value"]) for name, entry in facts.items()}
