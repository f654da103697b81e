"""Memory of a replica's devices: weights, the activations of the largest step, graphs, and what is left for the cache."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from costmodels.block_memory import parameters
from costmodels.block_table import graphs
from costmodels.serving.attention import values_per_token
from costmodels.serving.formats import cache_bytes, weight_bytes
from costmodels.serving.local import PLACEMENT, Local, column, layer_graphs
from costmodels.serving.speculation import where_drafted
from costmodels.serving.stack import ServingStack
from spaces.architecture import Architecture
from spaces.columns import Bindings, FloatArray, Value
from spaces.graph import Kind


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Capacity:
    """Bytes on the fullest device and what they leave; arrays (n,).

    `room` is what weights, activations, graphs and cache may use together. `token` is the bytes one cached token takes on one
    device, `whole` those with what of it is kept on the host; `tokens` the cached tokens that fit on ONE attention group of a
    replica (0 where not even the weights fit). Of a device's share of `host_memory`, offloaded weights take `on_host`.
    """

    weights: FloatArray
    activations: FloatArray
    graphs: FloatArray
    reserve: FloatArray
    room: FloatArray
    token: FloatArray
    whole: FloatArray
    tokens: FloatArray
    on_host: FloatArray
    host_memory: FloatArray

    @property
    def fixed(self) -> FloatArray:
        """All but the cache, bytes."""
        return self.weights + self.activations + self.graphs + self.reserve

    def excess(self, tokens: FloatArray, offloaded: FloatArray) -> FloatArray:
        """Use over limit − 1, on the device or on its host, with so many `tokens` cached, of which a share is `offloaded`."""
        on_device = (self.fixed + tokens * self.token) / self.room - 1.0
        on_host = (self.on_host + tokens * self.whole * offloaded) / self.host_memory - 1.0
        return np.asarray(np.maximum(on_device, on_host), np.float64)


def capacity(architecture: Architecture, stack: ServingStack, at: Bindings) -> Capacity:
    """What fits, for n design points. Stages are the fullest: ⌈layers / pipeline⌉ layers and the larger end."""
    n = at.n

    def rows(value: Value) -> FloatArray:
        return np.broadcast_to(np.asarray(value, np.float64), (n,)).copy()

    layers = np.ceil(rows(at["layers"]) / rows(at["pipeline"]))
    local = Local(at, 1)
    held, apart = _weights(architecture, stack, local)
    drafts = 1.0 + where_drafted(rows(at["speculation"]), rows(at["draft_held"]))  # a draft is held as the model is
    weights = rows(held.reshape(-1) if n else 0.0) * drafts + rows(_adapters(architecture, stack, local))
    activations = rows(_activations(architecture, at))
    captured = rows(at["stack.graph_bytes"]) * rows(at["cuda_graphs"])
    fixed = weights + activations + captured + rows(at["stack.reserve"])
    memory, fraction = rows(at["device.memory_capacity"]), rows(at["kv_fraction"])
    of_free = rows(at["stack.kv_fraction_of_free"]) > 0
    beside = captured * rows(at["stack.graphs_beside"]) + activations * rows(at["stack.activations_beside"])
    limited = np.minimum(memory * fraction + beside, memory)
    room = np.where(of_free, fixed + (memory - fixed) * fraction, limited)
    whole = layers * rows(_token_bytes(architecture, stack, local)) * drafts
    offloaded = rows(at["kv_offload"])
    # beside what stays, room for two layers of what does not: the one attended to and the one that is fetched
    token = whole * (1.0 - offloaded + offloaded * np.minimum(_FETCHED_LAYERS / layers, 1.0))
    on_host, host_memory = rows(apart.reshape(-1) if n else 0.0), rows(at["device.host_memory"])
    free = np.maximum(room - fixed, 0.0)
    host_fit = np.maximum(host_memory - on_host, 0.0) / np.maximum(offloaded * whole, 1e-3)
    fit = np.where(offloaded > 0, np.minimum(free / token, host_fit), free / token)
    block = np.maximum(rows(at["stack.block_tokens"]), 1.0)
    tokens = np.floor(fit / block) * block
    return Capacity(
        weights=weights,
        activations=activations,
        graphs=rows(at["stack.graph_bytes"]) * rows(at["cuda_graphs"]),
        reserve=rows(at["stack.reserve"]),
        room=room,
        token=token,
        whole=whole,
        tokens=tokens,
        on_host=on_host,
        host_memory=host_memory,
    )


_FETCHED_LAYERS = 2.0


def _weights(architecture: Architecture, stack: ServingStack, local: Local) -> tuple[FloatArray, FloatArray]:
    """Bytes of weights on the device that holds most, and those that it leaves to its host: linear layers in the plan's
    format, the rest in 16 bits; (n, 1)."""
    model = graphs(architecture, stack.traits)
    sixteen = np.where(np.asarray(local["precision"]) == 0, 4.0, 2.0)
    narrow = weight_bytes(local["precision"])
    total: Value = 0.0
    apart: Value = 0.0
    for _, graph, count in layer_graphs(architecture, stack):
        dense, expert = parameters(graph, PLACEMENT, local)
        held = 1.0 - np.asarray(local["expert_offload"], np.float64)  # of the experts, on the device
        rest = 1.0 - np.asarray(local["weight_offload"], np.float64)  # of everything else
        total = total + (np.asarray(dense, np.float64) * rest + np.asarray(expert, np.float64) * held) * count * narrow
        away = np.asarray(dense, np.float64) * (1.0 - rest) + np.asarray(expert, np.float64) * (1.0 - held)
        apart = apart + away * count * narrow
    of_stage = np.ceil(np.asarray(local["layers"]) / local["pipeline"]) / local["layers"]
    total, apart = total * of_stage, apart * of_stage
    ends = [
        sum(np.asarray(p, np.float64) for p in parameters(graph, PLACEMENT, local)) for graph in (model.embedding, model.head)
    ]
    # an embedding shared with the head is held once on one stage, and on both ends of a pipeline
    both = ends[0] + ends[1]
    larger = np.where(np.asarray(local["pipeline"]) > 1, np.maximum(ends[0], ends[1]), both)
    shape = (local.at.n, 1)
    return (
        np.asarray(np.broadcast_to(total + larger * sixteen, shape), np.float64),
        np.asarray(np.broadcast_to(apart, shape), np.float64),
    )


def _adapters(architecture: Architecture, stack: ServingStack, local: Local) -> FloatArray:
    """Bytes of the adapters on a device, (n,): two thin matrices in 16 bits for every linear layer of a stage."""
    rank = np.asarray(local["lora_rank"], np.float64)
    total: Value = 0.0
    if np.any(rank > 0):
        for _, graph, count in layer_graphs(architecture, stack):
            for op in graph.operators:
                if op.kind is Kind.GEMM and op.quantised:
                    reads = op.reads[0][1]
                    wide = [graph.elements([d for d in t.dims if d not in reads], PLACEMENT) for t in op.writes]
                    ends = sum(w.evaluate(local) for w in wide) + graph.elements(op.contracted, PLACEMENT).evaluate(local)
                    total = total + ends * 2.0 * count
    of_stage = np.ceil(np.asarray(local["layers"]) / local["pipeline"]) / local["layers"]
    found = np.asarray(total * of_stage * rank * local["adapters"], np.float64)
    return np.asarray(np.broadcast_to(found, (local.at.n, 1)).reshape(-1), np.float64)


def _activations(architecture: Architecture, at: Bindings) -> Value:
    """Bytes of the largest step: its tokens' widest layer twice over and the logits of the sequences it samples, or what
    sampling as many sequences as may run takes, where that is tried out before the cache is laid out."""
    tokens = np.minimum(
        np.asarray(at["token_budget"], np.float64), np.asarray(at["max_batch"], np.float64) * at["input_tokens"]
    )
    tokens = np.minimum(tokens, 65536.0)
    hidden, tensor = np.asarray(at["hidden"], np.float64), np.asarray(at["tensor"], np.float64)
    wide = at["ffn"] / (tensor * at["attention_data"])
    if architecture.experts:
        # of each copy: gate and up, their product, and the layer's input and output (a third of them, for the three below)
        experts = at["moe_ffn"] / np.asarray(at["expert_tensor"], np.float64) + 2.0 / 3.0 * hidden
        copies = np.asarray(at["experts_per_token"]) * np.asarray(at["attention_data"], np.float64)
        wide = np.maximum(wide, experts * np.maximum(copies / at["expert"], 1.0))
    sampled = np.minimum(np.asarray(at["max_batch"], np.float64), 1024.0)
    layers = 2.0 * tokens * (4.0 * hidden + 3.0 * wide) + 4.0 * sampled * at["vocab"]
    return np.maximum(layers, at["stack.sampler_bytes"] * sampled * at["vocab"])


def _token_bytes(architecture: Architecture, stack: ServingStack, local: Local) -> FloatArray:
    """Mean bytes a cached token takes in one layer of one device, (n,).

    Windowed layers keep no more than their window where the stack frees the rest: of a request of the workload's length.
    """
    full = np.asarray(values_per_token(architecture, local) * cache_bytes(local["kv_precision"]), np.float64)
    total: Value = 0.0
    length = np.asarray(local["input_tokens"] + local["output_tokens"], np.float64)
    for kind, _, count in layer_graphs(architecture, stack):
        kept: Value = 1.0
        if kind.endswith("-window"):
            kept = np.where(np.asarray(local["stack.hybrid_cache"]) > 0, np.minimum(local["sliding_window"] / length, 1.0), 1.0)
        total = total + full * kept * count
    each = np.asarray(total / local["layers"], np.float64)
    return np.asarray(np.broadcast_to(each, (local.at.n, 1)).reshape(-1), np.float64)


__all__ = ["Capacity", "capacity", "column"]
