"""Peak memory of a training step: a timeline counted per stage, not a sum.

Three moments can be the peak: the start of the backward pass at the head (logits and their gradients), the backward pass of a
layer (remaining activations, that layer's own tensors, gradients so far), and the optimizer step. Each part is bytes by dtype;
activations are what the graph says is kept, times the microbatches in flight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from costmodels.block import BlockMemory
from costmodels.constants import Stack
from costmodels.data_parallel import shard_ranks
from costmodels.model_state import state_widths
from costmodels.schedule import in_flight
from spaces.columns import FloatArray, IntArray, Value
from spaces.expressions import SymbolTable
from spaces.plan import NAMES, Offload, Recompute, Trainable
from spaces.stages import FIRST, LAST, MIDDLE, StageTable

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "working", "gathered")
"""Parts of the allocator's peak, in report order."""


@dataclass(frozen=True, slots=True, eq=False)
class MemoryUse:
    """Bytes on the device that needs most, arrays of shape (n,).

    `peak` is the allocator's peak; `parts` sum to it; `stages` (3, n) is the peak of the first, heaviest middle and last stage;
    `device` adds fragmentation, context and communication buffers, and is what must fit.
    """

    peak: FloatArray
    parts: dict[str, FloatArray]
    stages: FloatArray
    device: FloatArray
    overhead: FloatArray


def stage_parameters(blocks: BlockMemory, combination: IntArray, counts: FloatArray, tied: bool, pipeline: Value) -> tuple[FloatArray, FloatArray]:
    """(dense, expert) parameters of a device on the first, middle and last stage, each (3, n).

    `counts` is (kinds, 3, n). With tied embeddings and more than one stage the last stage holds a copy of the table.
    """
    kinds = counts.shape[0]
    dense = np.einsum("ksn,kn->sn", counts, blocks.dense[:kinds, combination])
    expert = np.einsum("ksn,kn->sn", counts, blocks.expert[:kinds, combination])
    embedding, head = blocks.dense[kinds][combination], blocks.dense[kinds + 1][combination]
    alone = np.asarray(pipeline) == 1
    copy = embedding if tied else 0.0
    dense[FIRST] += embedding + np.where(alone, head, 0.0)
    dense[LAST] += head + np.where(alone, embedding, copy)
    dense[MIDDLE] = np.where(alone, dense[FIRST], dense[MIDDLE])
    return dense, expert


def trained_share(at: SymbolTable) -> Value:
    """Share of the parameters that has gradients and optimizer state: all, or LoRA's adapters."""
    return np.where(np.asarray(at["trainable"]) == Trainable.LORA, at["stack.lora_share"], 1.0)


def memory_use(
    stack: Stack, at: SymbolTable, blocks: BlockMemory, combination: IntArray, stages: StageTable, place: IntArray, tied: bool
) -> MemoryUse:
    """Memory of n plans; `combination` and `place` (n,) index the block and stage tables."""
    counts = stages.counts[:, :, place]
    kinds = counts.shape[0]
    pipeline, virtual = np.asarray(at["pipeline"]), np.asarray(at["virtual"])
    microbatches = at["global_batch"] // (at["data"] * at["micro_batch"])
    dense, expert = stage_parameters(blocks, combination, counts, tied, pipeline)
    state = _state(stack, at, dense, expert)
    kept = kept_per_stage(at, blocks, combination, counts)
    embedding, head = blocks.kept[kinds, 0][combination], blocks.kept[kinds + 1, 0][combination]
    logits = _logits(at)
    layers = counts.sum(axis=0)
    per_layer = np.divide(kept, layers, out=np.zeros_like(kept), where=layers > 0)
    working = blocks.working[:kinds, combination].max(axis=0)
    # a recomputed layer exists whole while its backward runs
    recomputed = np.asarray(at["recompute"]) != Recompute.NONE
    whole = blocks.kept[:kinds, 0][:, combination].max(axis=0)
    alone = pipeline == 1
    unit = _gathered(at, dense, expert, layers, embedding_parameters=blocks.dense[kinds][combination])
    totals, parts = [], []
    for stage in (FIRST, MIDDLE, LAST):
        index = {FIRST: 0 * pipeline, MIDDLE: np.minimum(1, pipeline - 1), LAST: pipeline - 1}[stage]
        flights = in_flight(at["schedule"], pipeline, virtual, microbatches, index) / virtual
        activations = kept[stage] * flights
        if stage == FIRST:
            activations = activations + embedding * flights
        ends = np.where(alone, 1.0, 1.0 if stage == LAST else 0.0)
        own_logits = logits * ends
        activations = activations + head * ends * np.where(alone & (stage != FIRST), 0.0, 1.0)
        extra = working + np.where(recomputed, np.maximum(whole - per_layer[stage], 0.0), 0.0)
        gradients, persistent = state["gradients"][stage], at["stack.memory.persistent_gradients"]
        held = gradients * np.where(microbatches > 1, 1.0, persistent)
        moments = {
            "head": (held, activations, own_logits * at["stack.memory.logits_copies"], 0.0, unit[stage]),
            "layer": (
                np.maximum(held, gradients * at["stack.memory.gradients_at_peak"]),
                activations,
                own_logits * 0.0,
                extra,
                unit[stage],
            ),
            "step": (gradients, 0.0 * activations, 0.0 * own_logits, 0.0, 0.0 * unit[stage]),
        }
        base = state["weights"][stage] + state["optimizer"][stage]
        sums = np.stack([np.broadcast_to(base + sum(parts_), base.shape) for parts_ in moments.values()])
        when = np.argmax(sums, axis=0)
        rows = [np.stack([np.broadcast_to(moment[i], base.shape) for moment in moments.values()]) for i in range(5)]
        chosen = [np.take_along_axis(row, when[None], axis=0)[0] for row in rows]
        totals.append(np.take_along_axis(sums, when[None], axis=0)[0])
        parts.append((state["weights"][stage], chosen[0], state["optimizer"][stage], *chosen[1:]))
    stages_total = np.stack(totals)
    worst = np.argmax(stages_total, axis=0)
    peak = np.take_along_axis(stages_total, worst[None], axis=0)[0]
    named = {
        name: np.take_along_axis(np.stack([part[i] for part in parts]), worst[None], axis=0)[0] for i, name in enumerate(PARTS)
    }
    overhead = peak * at["stack.memory.fragmentation"] + at["stack.memory.reserve"] + _buffers(at)
    return MemoryUse(peak, named, stages_total, peak + overhead, overhead)


def kept_per_stage(at: SymbolTable, blocks: BlockMemory, combination: IntArray, counts: FloatArray) -> FloatArray:
    """Bytes kept by the layers of each stage for one microbatch through all its chunks, (3, n)."""
    kinds = counts.shape[0]
    policy = policy_of(at)
    rows = np.arange(len(combination))
    none = np.einsum("ksn,kn->sn", counts, blocks.kept[:kinds, 0][:, combination])
    chosen = np.einsum("ksn,kn->sn", counts, blocks.kept[:kinds][:, policy[rows], combination])
    full = np.einsum("ksn,kn->sn", counts, blocks.kept[:kinds, 2][:, combination])
    share = first_k_share(at, counts)
    return np.where(np.asarray(at["recompute"]) == Recompute.FIRST_K, none + share * (full - none), chosen)


def policy_of(at: SymbolTable) -> IntArray:
    """Index of the block's recomputation policy; first-k starts from none."""
    code = np.asarray(at["recompute"])
    return np.atleast_1d(np.where(code == Recompute.FIRST_K, 0, code)).astype(np.int64)


def first_k_share(at: SymbolTable, counts: FloatArray) -> FloatArray:
    """Share of each stage's layers that first-k recomputes, (3, n)."""
    layers = np.maximum(counts.sum(axis=0), 1.0)
    chosen = np.minimum(np.asarray(at["recompute_layers"], np.float64), layers)
    return np.where(np.asarray(at["recompute"]) == Recompute.FIRST_K, chosen / layers, 0.0)


def _state(stack: Stack, at: SymbolTable, dense: FloatArray, expert: FloatArray) -> dict[str, FloatArray]:
    """Bytes of weights, gradients and optimizer state per stage, each (3, n), after sharding by ZeRO stage."""
    zero = np.asarray(at["zero_stage"])
    shard, expert_shard = shard_ranks(at)
    trained = trained_share(at)
    precision = np.asarray(at["precision"])
    bytes_of = {role: np.zeros(np.broadcast_shapes(precision.shape, dense.shape[1:])) for role in ("weights", "gradients", "optimizer")}
    sharded: dict[str, Value] = {"weights": zero >= 3, "gradients": zero >= 2, "optimizer": zero >= 1}
    for code in np.unique(precision):
        widths = state_widths()[stack.optimizer(NAMES["precision"][int(code)])]
        here = precision == code
        roles = {"weights": widths.bytes["weights"], "gradients": widths.bytes["gradients"]}
        roles["optimizer"] = widths.bytes["master"] + widths.bytes["moments"]
        for role, width in roles.items():
            bytes_of[role] = np.where(here, width, bytes_of[role])
    # adapters train in the same formats; frozen weights are held in 16 bits
    state = {}
    for role, width in bytes_of.items():
        split = dense / np.where(sharded[role], shard, 1) + expert / np.where(sharded[role], expert_shard, 1)
        share = 1.0 if role == "weights" else trained
        state[role] = split * width * share
    # distributed gradients of stage 1 stay whole; stage 1 of Megatron keeps them in fp32 until the step
    state["optimizer"] = np.where(np.asarray(at["offload"]) == Offload.OPTIMIZER, 0.0, state["optimizer"])
    return state


def _logits(at: SymbolTable) -> Value:
    """Bytes of the logits of one microbatch on one device."""
    vocab = at["vocab"] / np.where(at["stack.vocab_parallel"] > 0, at["tensor"], 1)
    return at["micro_batch"] * at["sequence"] / at["context"] * vocab * at["stack.logits_bytes"]


def _gathered(at: SymbolTable, dense: FloatArray, expert: FloatArray, layers: FloatArray, embedding_parameters: Value) -> FloatArray:
    """Bytes of parameters gathered whole at a time under ZeRO-3: two layers, one being used and one arriving, (3, n)."""
    sharded = np.asarray(at["zero_stage"]) >= 3
    per_layer = (dense + expert) / np.maximum(layers, 1.0)
    units = np.maximum(2.0 * per_layer, embedding_parameters) * at["stack.parameter_bytes"]
    return np.where(sharded, units, 0.0)


def _buffers(at: SymbolTable) -> Value:
    """Communication buffers, once there is someone to talk to."""
    return np.where(np.asarray(at["devices"]) > 1, at["stack.memory.buffer"], 0.0)
