"""Kernels of one serving step, from the same block graphs that training reads, at the local shapes of an engine.

What grows with new tokens and what grows with sampled sequences, each a function of one total of the batch. Products,
experts and attention have files of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from costmodels.serving.attention import values_per_token
from costmodels.serving.calls import Call, repeated
from costmodels.serving.exchanges import expert_exchange, reduction, send
from costmodels.serving.experts import expert_rows, grouped, widened_fp4
from costmodels.serving.formats import compute_format
from costmodels.serving.local import PLACEMENT, Local, layer_graphs
from costmodels.serving.products import eight_bit_blocks, product, weight_product
from costmodels.serving.stack import ServingStack
from spaces.architecture import Architecture
from spaces.columns import Bindings, Value
from spaces.graph import Graph, Kind, Operator

_SMALL = 2.0e-6  # s of a kernel that does next to nothing (costmodels/data/measurements: the smallest pointwise operands)
_COLLECTIVES = frozenset({"all_reduce", "all_gather", "reduce_scatter"})
_DENSE_WIDTHS = frozenset({"ffn", "shared_ffn"})
_CLASS = {
    Kind.NORM: "norm",
    Kind.ACTIVATION: "activation",
    Kind.MULTIPLY: "multiply",
    Kind.ADD: "add",
    Kind.ROTARY: "rotary",
    Kind.ROUTE: "route",
}


def token_calls(architecture: Architecture, stack: ServingStack, at: Bindings, tokens: Value) -> Iterator[Call]:
    """Linear layers, experts, pointwise operators and collectives of all layers, and the embedding; grid (T,)."""
    local = Local(at, tokens)
    for _, graph, count in layer_graphs(architecture, stack):
        layer = [call for op in graph.operators for call in operator_calls(op, graph, stack, local)]
        layer += _cache_write(architecture, stack, local)
        layer.append(reduction(local, local["tensor"], tokens * 2.0 * local["hidden"]))
        parts = {"latent": architecture.kv_lora_rank > 0, "experts": _has_experts(graph)}
        layer += expert_exchange(local, tokens, experts=parts["experts"])
        yield from (repeated(call, count) for call in (*layer, gaps(layer, local, parts)))
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
        small = small + np.where(widened_fp4(local), local["stack.small_kernels.widened"], 0.0)
    waited: Value = met * local["stack.rank_wait"]
    if parts["experts"]:
        held = np.asarray(local["experts"], np.float64) / local["expert"]
        waited = waited + np.where(eight_bit_blocks(local), local["stack.held_expert_time"] * held, 0.0)
    return Call(op="", floor=started * local["stack.kernel_gap"] + small * (local["stack.kernel_gap"] + _SMALL) + waited)


def kernels_of(call: Call) -> float:
    """Kernels behind a call: silu and its product by the gate are two, copies of keys and values as well; part of one none."""
    if not call.op:
        return 0.0
    copies = max(round(float(np.max(call.times, initial=0.0))), 1) if call.op == "copy" else 1.0
    return {"chunk_silu_mul": 2.0}.get(call.op, copies)


def _has_experts(graph: Graph) -> bool:
    return any(op.kind is Kind.GROUPED_GEMM for op in graph.operators)


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
        yield from grouped(op, graph, local)
    elif op.kind is Kind.PERMUTE:
        if op.name in ("permute", "combine"):
            wider = np.where(eight_bit_blocks(local), local["stack.permute_blocks"], 1.0)
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
            yield repeated(call, np.where(_normed_in_sum(here), 0.0, 1.0)) if fused else call


def _normed_in_sum(local: Local) -> Value:
    """Whether the sum over tensor ranks adds to the stream, norms it and casts the norm besides (`stack.normed_in_sum`): the
    server's own does, NCCL's of large messages does not."""
    summed = (np.asarray(local["tensor"]) > 1) & (np.asarray(local["attention_data"]) == 1)
    small = local.tokens * 2.0 * local["hidden"] <= local["stack.custom_all_reduce.limit"]
    return summed & small & (np.asarray(local["pipeline"]) == 1) & (np.asarray(local["stack.normed_in_sum"]) > 0)


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


def sequence_calls(architecture: Architecture, stack: ServingStack, at: Bindings, sequences: Value) -> Iterator[Call]:
    """Last norm, head, collection of its logits and the choice of a token; grid (S,)."""
    local = Local(at, sequences)
    vocab = -(-np.asarray(local["vocab"]) // local["tensor"])
    named = "layer_norm" if architecture.norm == "layernorm" else "norm"
    yield from _stream(stack, named, sequences, local["hidden"])
    yield weight_product(local, sequences, vocab, local["hidden"], 1.0, quantised=False)
    ranks = np.asarray(local["tensor"], np.float64)
    collected = np.where((ranks > 1) & (np.asarray(local["stack.gather_logits"]) > 0), 1.0, 0.0)
    yield reduction(local, ranks, sequences * 2.0 * local["vocab"], kind="all_gather", times=collected)
    yield Call(op="", floor=local["stack.exposed"] + local["stack.exposed_per_sequence"] * sequences)
    kernel = stack.streams["sample"]
    if kernel.op != "none":
        yield Call(op=kernel.op, shape={"rows": sequences, "cols": local["vocab"]})
    else:
        yield Call(op="copy", shape={"rows": sequences, "cols": local["vocab"] * local["stack.sample_passes"] / 2.0})
    yield Call(op="", floor=local["stack.top_p.asked"] * _top_p(local, sequences))


def _top_p(local: Local, sequences: Value) -> Value:
    """Seconds that keeping the likeliest tokens up to a share of the probability takes; measured at `stack.top_p.logits`."""
    rows = np.asarray(sequences, np.float64)
    waves = np.ceil(rows / local["stack.top_p.rows"]) * local["stack.top_p.wave"]
    few = rows < local["stack.top_p.from"]
    measured = np.where(few, local["stack.top_p.start"] + local["stack.top_p.row"] * rows, waves)
    return measured * local["vocab"] / local["stack.top_p.logits"]
