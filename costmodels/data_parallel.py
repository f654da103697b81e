"""Gradient synchronisation, parameter gathering and the optimizer step: what a step pays for its data-parallel ranks.

Dense parameters are copied over data · context ranks, expert parameters over expert_data = tensor·context·data /
(expert_tensor·expert). Bytes by dtype and by microbatch follow Rajbhandari 2020 §5 and 7; HSDP shards over `shard_degree`
ranks and reduces across the replicas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from costmodels.autocast import autocast
from costmodels.block import group_time, links_of, ranks_inside
from costmodels.collectives import Link, collective_bytes, collective_time
from costmodels.kernel_times import KernelTimes
from spaces.columns import FloatArray, Value
from spaces.expressions import SymbolTable
from spaces.plan import Offload, RankOrder


@dataclass(frozen=True, slots=True, eq=False)
class DataParallelTime:
    """Seconds per step on the stage with the most parameters, arrays of shape (n,).

    `reduce`: one reduction of all gradients; `gather`: one gather of all parameters (0 where none is needed); `last_reduce`,
    `first_gather`: their parts that come after all computation and before it (the ends of the model); `copies`: moving
    them into and out of communication buffers, once; `optimizer`: the update, host transfers included; `accumulate`: adding
    one microbatch's gradients. `inner_bytes`, `outer_bytes`: bytes a rank sends for one reduction and one gather;
    `traffic`: bytes of device memory that the update reads and writes.
    """

    reduce: FloatArray
    gather: FloatArray
    last_reduce: FloatArray
    first_gather: FloatArray
    copies: FloatArray
    optimizer: FloatArray
    accumulate: FloatArray
    inner_bytes: FloatArray
    outer_bytes: FloatArray
    traffic: FloatArray


def shard_ranks(at: SymbolTable) -> tuple[Value, Value]:
    """(dense, expert) ranks over which ZeRO or FSDP divides state, or a plain reduction runs; `shard_degree` 0 means all."""
    dense = at["context"] * at["data"]
    degree = np.asarray(at["shard_degree"])
    fewer = (degree > 0) & (degree < dense) & (np.asarray(at["zero_stage"]) > 0)
    shard = np.where(fewer, degree, dense)
    experts = np.maximum(at["tensor"] * dense // (at["expert_tensor"] * at["expert"]), 1)
    return shard, np.where(fewer, np.minimum(experts, shard), experts)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ends:
    """Parameters on a device outside the layers: of the embedding and the head, shape (n,); `tied` when they are the same."""

    embedding: Value = 0.0
    head: Value = 0.0
    tied: bool = False


NO_ENDS = Ends()


def data_parallel_time(
    at: SymbolTable, dense: Value, expert: Value, trained: Value, ends: Ends = NO_ENDS, times: KernelTimes | None = None
) -> DataParallelTime:
    """Times for `dense` and `expert` parameters on a device, of which the share `trained` has gradients."""
    copies = at["context"] * at["data"]
    shard, expert_shard = shard_ranks(at)
    expert_copies = np.maximum(at["tensor"] * copies // (at["expert_tensor"] * at["expert"]), 1)
    zero = np.asarray(at["zero_stage"])
    sharded = zero >= 1
    parameter = at["stack.parameter_bytes"]
    wide = 1.0 + autocast(at)  # whole fp32 parameters have fp32 gradients, in buckets as well
    # where the framework reduces gradients as they are kept, fp32 ones cross in fp32
    kept = np.where(np.asarray(at["stack.memory.autocast"]) > 0, at["optimizer.gradients"], 0.0)
    gradient = np.maximum(at["stack.gradient_bytes"], kept)
    dense_group = _dense_group(at, shard)
    expert_group = links_of(at, expert_copies, at["expert_tensor"] * at["expert"])
    reduce, gather, inner_bytes, outer_bytes = (np.zeros(np.shape(zero * dense * 1.0)) for _ in range(4))
    for parameters, ranks, group, whole in (
        (dense, shard, dense_group, copies),
        (expert, expert_copies, expert_group, expert_copies),
    ):
        if not np.any(parameters):  # a dense model has no experts
            continue
        size = parameters * trained * gradient
        all_reduce = 0.0 if sharded.all() else group_time(at, "all_reduce", size, ranks, *group, times)
        scatter = group_time(at, "reduce_scatter", size, ranks, *group, times) if sharded.any() else 0.0
        # HSDP: what is scattered is then reduced over the replicas of the shard group
        replicas = np.maximum(whole // np.maximum(ranks, 1), 1)
        reduce = reduce + np.where(sharded, scatter, all_reduce)
        if sharded.any():
            gathered = group_time(at, "all_gather", parameters * parameter, ranks, *group, times)
            gather = gather + np.where(sharded, gathered, 0.0)
        for kind, moved in (("reduce_scatter", size), ("all_gather", parameters * parameter)):
            inner, outer = collective_bytes(kind, moved, ranks, group[0])
            inner_bytes, outer_bytes = inner_bytes + inner, outer_bytes + outer
        if np.any(replicas > 1):
            between = np.where(np.asarray(at["rank_order"]) == RankOrder.TENSOR_CONTEXT_PIPELINE_DATA, at["pipeline"], 1)
            replica_group = links_of(at, replicas, at["tensor"] * ranks * between)
            reduce = reduce + collective_time("all_reduce", size / ranks, replicas, *replica_group)
            inner, outer = collective_bytes("all_reduce", size / ranks, replicas, replica_group[0])
            inner_bytes, outer_bytes = inner_bytes + inner, outer_bytes + outer
    own = np.where(sharded, dense / shard + expert / expert_shard, dense + expert) * trained
    bandwidth = at["device.memory_bandwidth"] * at["kernel.optimizer.bandwidth"]
    copying = at["device.memory_bandwidth"] * at["kernel.pointwise.copies"]
    update = own * (at["optimizer.traffic"] / bandwidth + at["kernel.optimizer.element"])
    looked_up = 0.0 if ends.tied else ends.embedding
    update = update + np.where(sharded, looked_up / shard, looked_up) * trained * at["stack.untouched"]
    update = update + at["stack.step_bytes"] * (dense + expert) * trained / copying
    offloaded = np.asarray(at["offload"]) == Offload.OPTIMIZER
    # gradients down and parameters up over the host link, and the update at the host's rate (Ren 2021, ZeRO-Offload §4)
    crossing = own * (gradient + parameter)
    link = at["device.host_link_bandwidth"] * at["link.host.copy"]
    host = crossing / link + own / at["stack.host_optimizer_rate"]
    accumulate = (dense + expert) * trained * wide * at["stack.accumulate_bytes"] / copying
    bucket = at["stack.bucket_bytes.sharded"] + gradient - at["stack.gradient_bytes"]
    moved = np.where(zero >= 2, bucket, wide * at["stack.bucket_bytes.replicated"]) * (copies > 1)
    copied = (dense + expert) * trained * moved / copying
    # sharded whole, both ends are one unit; else the embedding's gradients are the last of the backward pass
    outside = np.where(zero >= 3, ends.embedding + ends.head, ends.embedding)
    share = np.minimum(at["stack.exposed_ends"] * outside / np.maximum(dense + expert, 1.0), 1.0)
    return DataParallelTime(
        reduce=reduce,
        gather=gather,
        last_reduce=reduce * share,
        first_gather=np.where(zero >= 3, gather * share, 0.0),
        copies=copied,
        optimizer=np.where(offloaded, host, update),
        accumulate=accumulate,
        inner_bytes=inner_bytes,
        outer_bytes=outer_bytes,
        traffic=np.where(offloaded, crossing, own * at["optimizer.traffic"]),
    )


def _dense_group(at: SymbolTable, shard: Value) -> tuple[Value, Link, Link]:
    """Placement of the ranks that share a dense shard: context and data are contiguous unless pipeline lies between them."""
    inside, inner, outer = links_of(at, shard, at["tensor"])
    between = np.asarray(at["rank_order"]) == RankOrder.TENSOR_CONTEXT_PIPELINE_DATA
    if not np.any(between):
        return inside, inner, outer
    context_inside = ranks_inside(at, at["context"], at["tensor"])
    whole_context = context_inside == at["context"]
    data_inside = ranks_inside(at, at["data"], at["tensor"] * at["context"] * at["pipeline"])
    apart = np.where(whole_context, context_inside * data_inside, context_inside)
    return np.minimum(np.where(between, apart, inside), shard), inner, outer


def exposed_time(time: Value, available: Value, share: Value, contention: Value) -> Value:
    """Seconds of a collective that a step pays: what does not fit behind `available` compute, and what it slows there."""
    hidden = np.minimum(time * share, available)
    return time - hidden * (1.0 - contention)
