"""Collectives of a serving step: reductions of tensor ranks, and how tokens reach experts on other devices."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from costmodels.collectives import collective_bytes
from costmodels.serving.calls import Call
from spaces.columns import Value
from spaces.expressions import SymbolTable
from spaces.mesh import worst_group


def reduction(
    local: SymbolTable, ranks: Value, size: Value, stride: Value = 1, kind: str = "all_reduce", times: Value = 1.0
) -> Call:
    """A collective of `size` bytes (nccl-tests' size) over `ranks` devices, `stride` apart; nothing for one rank.

    Servers sum small messages with kernels of their own that read peers' buffers over NVLink; large ones go the faster way of
    NCCL's rings and a sum in the switch where it can.
    """
    ranks = np.asarray(ranks, np.float64)
    inside = _inside(local, ranks, stride)
    cap: Value = np.inf
    own: Value = np.inf
    if kind == "all_reduce":
        near = inside >= ranks
        cap = np.where(near, _switched_sum(local, ranks, size), np.inf)
        own = np.where(near, _custom_sum(local, ranks, size), np.inf)
        own = np.where(np.isfinite(own), np.minimum(own, cap), np.inf)
    shape = {"bytes": np.maximum(size, 1.0), "ranks": np.maximum(ranks, 1.0), "ranks_per_node": np.maximum(inside, 1.0)}
    return Call(op=kind, shape=shape, times=np.where(ranks > 1, times, 0.0), cap=cap, own=own)


def _custom_sum(local: SymbolTable, ranks: Value, size: Value) -> Value:
    """Seconds of a server's own sum over ranks of one domain: one read of all peers while that is quick, else a reduce-scatter
    and an all-gather, between which all wait for each other once more."""
    own = local["stack.custom_all_reduce.setup"] + local["stack.custom_all_reduce.hop"] * ranks
    once = np.where(ranks > 4, local["stack.custom_all_reduce.one_shot_many"], local["stack.custom_all_reduce.one_shot_few"])
    one_shot = (size < once) | (ranks == 2)
    bandwidth = local["device.scale_up_bandwidth"]
    read = (ranks - 1.0) * size / (bandwidth * local["stack.custom_all_reduce.share"])
    cut = 2.0 * (ranks - 1.0) / ranks * size / (bandwidth * local["stack.custom_all_reduce.second_share"])
    seconds = own + np.where(one_shot, read, local["stack.custom_all_reduce.second"] * ranks + cut)
    return np.where((size <= local["stack.custom_all_reduce.limit"]) & (ranks <= 8), seconds, np.inf)


def _switched_sum(local: SymbolTable, ranks: Value, size: Value) -> Value:
    """Seconds of a sum in the switch, which every rank's bytes reach once, and from which each rank's share comes back."""
    share = np.asarray(local["link.inner.summed"], np.float64)
    rate = local["device.scale_up_bandwidth"] * np.maximum(share, 1e-9)
    seconds = local["stack.switched_all_reduce.setup"] + (1.0 + 1.0 / np.maximum(ranks, 1.0)) * size / rate
    there = (share > 0) & (ranks > 2) & (size <= local["stack.switched_all_reduce.limit"])
    return np.where(there, seconds, np.inf)


def send(local: SymbolTable, size: Value, hops: Value) -> Call:
    """`size` bytes from each pipeline stage to the next."""
    stride = np.asarray(local["tensor"]) * local["attention_data"]
    inside = _inside(local, np.full_like(np.asarray(hops, np.float64), 2.0), stride)
    shape = {"bytes": np.maximum(size, 1.0), "ranks": 2.0, "ranks_per_node": inside}
    return Call(op="send_recv", shape=shape, times=np.asarray(hops, np.float64))


def expert_exchange(local: SymbolTable, tokens: Value, *, experts: bool) -> Iterator[Call]:
    """What joins the feed-forward part: a sum over its ranks where all of them hold the tokens, else tokens move.

    Under attention-data parallelism the tokens are gathered before and scattered after. Where experts lie on more ranks than a
    token has experts, tokens may instead be sent to them one by one (an all-to-all each way), and the quicker of the two is
    taken: with fewer ranks servers gather (select_alltoall_method_type in TensorRT-LLM's fused_moe_wide_ep.py).
    """
    width = 2.0 * np.asarray(local["hidden"])
    groups = np.asarray(local["attention_data"], np.float64)
    ranks = np.asarray(local["tensor"] * groups, np.float64)
    if experts:
        ranks = np.maximum(ranks, np.asarray(local["expert_tensor"] * local["expert"], np.float64))
    alone = np.where(groups == 1, 1.0, 0.0)
    yield reduction(local, ranks, tokens * width, times=alone)
    if not np.any(groups > 1):
        return
    together = np.where(groups > 1, 1.0, 0.0)
    gather = reduction(local, groups, tokens * groups * width, local["tensor"], "all_gather", together)
    scatter = reduction(local, ranks, tokens * groups * width, 1, "reduce_scatter", together)
    if not experts:
        yield gather
        yield scatter
        return
    copies = tokens * np.asarray(local["experts_per_token"]) / local["tensor"] * local["hidden"]
    sent = _dispatch_time(local, ranks, copies * (local["stack.dispatch_bytes"] + 2.0))
    apart = ranks > np.asarray(local["experts_per_token"])
    for call in (gather, scatter):
        yield Call(op=call.op, shape=call.shape, times=call.times, cap=np.where(apart, sent / 2.0, np.inf))


def _dispatch_time(local: SymbolTable, ranks: Value, size: Value) -> Value:
    """Seconds to dispatch and combine `size` bytes of a rank, both ways: an α–β all-to-all on the worst-placed ranks.

    A token goes to a node once, whatever experts it meets there (DeepEP), at most `routing_groups` of them.
    """
    inside = _inside(local, ranks, 1)
    inner, outer = collective_bytes("all_to_all", np.asarray(size, np.float64), *np.broadcast_arrays(ranks, inside))
    nodes = np.minimum(np.maximum(ranks / inside, 1.0), np.where(local["routing_groups"] > 0, local["routing_groups"], np.inf))
    once = np.minimum(nodes / np.maximum(local["experts_per_token"], 1), 1.0)
    latency = 2.0 * np.where(ranks > inside, 3.0 * local["link.outer.latency"], 2.0 * local["link.inner.setup"])
    fast = inner / (local["device.scale_up_bandwidth"] * local["link.inner.share"])
    slow = outer * once / (local["device.nic_bandwidth"] * local["link.outer.share"])
    return latency + np.maximum(fast, slow)


def _inside(local: SymbolTable, ranks: Value, stride: Value) -> Value:
    """Ranks of the worst-placed group within one domain."""
    domain = np.asarray(local["device.domain"], np.int64)
    inside, _ = worst_group(np.asarray(ranks, np.int64), np.asarray(stride, np.int64), domain, _replica(local))
    return np.asarray(inside, np.float64)


def _replica(local: SymbolTable) -> Value:
    """Devices of one replica: the smallest cluster its groups can lie in."""
    stage = np.maximum(
        np.asarray(local["tensor"]) * local["attention_data"], np.asarray(local["expert_tensor"]) * local["expert"]
    )
    return np.asarray(stage * local["pipeline"], np.int64)
