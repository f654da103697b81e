"""Peak memory of a training step: a timeline counted per stage, not a sum.

Three moments can be the peak: the start of the backward pass at the head (logits and their gradients), the backward pass of a
layer (remaining activations, that layer's own tensors, gradients so far), and the optimizer step. Each part is bytes by dtype;
activations are what the graph says is kept, times the microbatches in flight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from costmodels.block_memory import FRESH, HELD, BlockMemory
from costmodels.data_parallel import shard_ranks
from costmodels.schedule import in_flight
from spaces.columns import FloatArray, IntArray, Value
from spaces.expressions import SymbolTable
from spaces.plan import Offload, Recompute, Schedule, Trainable
from spaces.stages import FIRST, LAST, MIDDLE, StageTable

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "working", "gathered")
"""Parts of the allocator's peak, in report order."""


@dataclass(frozen=True, slots=True, eq=False)
class MemoryUse:
    """Bytes on the device that needs most, arrays of shape (n,).

    `peak` is the allocator's peak; `parts` sum to it; `stages` (3, n) is the peak of the first, heaviest middle and last stage;
    `device` adds fragmentation, context and communication buffers (`overhead`), and is what must fit.
    """

    peak: FloatArray
    parts: dict[str, FloatArray]
    stages: FloatArray
    device: FloatArray
    overhead: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class ActivationMemory:
    """Bytes that grow with the microbatch, per stage profile, each (3, n).

    `layers`: kept over all microbatches in flight when a backward pass begins; `remaining`: without the layer whose backward
    runs first; `left`: when it reaches its last layer, without that one; `others`: those of other microbatches alone.
    `head`, `layer`, `embedding`: the worst moment of such a block's own backward pass, what it kept included (0 where the
    stage has none); `loss`: the part of the head's that is logits, log-probabilities and their gradients; `named`: logits that
    the training loop still holds.
    """

    layers: FloatArray
    remaining: FloatArray
    left: FloatArray
    others: FloatArray
    head: FloatArray
    layer: FloatArray
    embedding: FloatArray
    loss: FloatArray
    named: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class StateMemory:
    """Bytes that parameters cost, per stage profile, each (3, n), after sharding.

    `weights`, `gradients` (all of them, `head` of the head alone, `before` all but the last layer's and the embedding's, `rest`
    all but the embedding's), `optimizer` state, `gathered`: parameters whole at a time under ZeRO-3, or the buckets of DDP;
    and `updating`: temporaries of the optimizer's update.
    """

    weights: FloatArray
    gradients: FloatArray
    head: FloatArray
    before: FloatArray
    rest: FloatArray
    optimizer: FloatArray
    gathered: FloatArray
    updating: FloatArray


def stage_parameters(
    blocks: BlockMemory, combination: IntArray, counts: FloatArray, tied: bool, pipeline: Value
) -> tuple[FloatArray, FloatArray]:
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


def stage_rounding(blocks: BlockMemory, combination: IntArray, counts: FloatArray, pipeline: Value) -> FloatArray:
    """Bytes that the allocator adds to weights, gradients and moments on the three stages, (3 roles, 3 stages, n)."""
    kinds = counts.shape[0]
    if not np.any(blocks.rounding):
        return np.zeros((3, *counts.shape[1:]))
    found = np.einsum("ksn,krn->rsn", counts, blocks.rounding[:kinds][:, :, combination])
    embedding, head = blocks.rounding[kinds][:, combination], blocks.rounding[kinds + 1][:, combination]
    alone = np.asarray(pipeline) == 1
    found[:, FIRST] += embedding + np.where(alone, head, 0.0)
    found[:, LAST] += head + np.where(alone, embedding, 0.0)
    found[:, MIDDLE] = np.where(alone, found[:, FIRST], found[:, MIDDLE])
    return np.asarray(found, np.float64)


def trained_share(at: SymbolTable) -> Value:
    """Share of the parameters that has gradients and optimizer state: all, or LoRA's adapters."""
    return np.where(np.asarray(at["trainable"]) == Trainable.LORA, at["stack.lora_share"], 1.0)


def activation_memory(
    at: SymbolTable, blocks: BlockMemory, combination: IntArray, stages: StageTable, place: IntArray
) -> ActivationMemory:
    """Activations of n plans; `combination` and `place` (n,) index the block and stage tables."""
    counts = stages.counts[:, :, place]
    kinds = counts.shape[0]
    pipeline = np.broadcast_to(np.asarray(at["pipeline"]), combination.shape)
    virtual = np.asarray(at["virtual"])
    microbatches = at["global_batch"] // (at["data"] * at["micro_batch"])
    kept = kept_per_stage(at, blocks, combination, counts)
    layers = counts.sum(axis=0)
    per_layer = np.divide(kept, layers, out=np.zeros_like(kept), where=layers > 0)
    alone = pipeline == 1
    positions = np.stack([0 * pipeline, np.minimum(1, pipeline - 1), pipeline - 1])
    flights = np.stack([in_flight(at["schedule"], pipeline, virtual, microbatches, index) / virtual for index in positions])
    entry = np.zeros_like(kept)
    entry[FIRST] = blocks.kept[kinds, 0][combination]
    entry[LAST] = np.where(alone, entry[FIRST], 0.0)
    held = gradients_held(at, combination)
    policy = policy_of(at, len(combination))

    def worst(block: int) -> FloatArray:
        return np.asarray(blocks.backward[block, held, policy, combination], np.float64)

    layer = np.stack([worst(kind) for kind in range(kinds)]).max(axis=0)
    head, embedding, loss, named = (np.zeros_like(kept) for _ in range(4))
    head[LAST], embedding[FIRST], loss[LAST] = worst(kinds + 1), worst(kinds), _loss(at, blocks, combination)
    named[LAST] = _logits(at) * at["stack.memory.logits_held"]
    for array in (head, named, loss):
        array[FIRST] = np.where(alone, array[LAST], 0.0)
    embedding[LAST] = np.where(alone, embedding[FIRST], 0.0)
    running = (kept + entry) * flights
    if np.any(blocks.cached):
        # while the loss runs forward, autocast's copies of recomputed layers' weights are still there
        cached = np.einsum("ksn,kn->sn", counts, blocks.cached[:kinds, combination]) * (policy > 0)
        forward = cached + blocks.kept[kinds + 1, 0][combination] + 3.0 * _logits(at)
        head = np.where(head > 0, np.maximum(head, forward), 0.0)
    others = running - kept - entry
    return ActivationMemory(
        layers=running,
        remaining=running - per_layer,
        left=others + entry,
        others=others,
        head=head,
        layer=np.where(layers > 0, layer, 0.0),
        embedding=embedding,
        loss=loss,
        named=named,
    )


def gradients_held(at: SymbolTable, combination: IntArray) -> IntArray:
    """`HELD` where gradients exist when a backward pass begins: from the second microbatch on, and where the stack keeps a
    buffer for them; `FRESH` where sharding takes the whole ones away after every backward pass. Shape (n,)."""
    persistent = np.asarray(at["stack.memory.persistent_gradients"]) > 0
    if persistent.all():
        return np.full(combination.shape, HELD)
    several = np.asarray(at["global_batch"] > at["data"] * at["micro_batch"])
    held = persistent | (several & (np.asarray(at["zero_stage"]) < 2))
    return np.broadcast_to(np.where(held, HELD, FRESH), combination.shape)


def memory_use(at: SymbolTable, live: ActivationMemory, state: StateMemory) -> MemoryUse:
    """The timeline's peak over stages and moments, for n plans whose live and state bytes are given."""
    several = at["global_batch"] > at["data"] * at["micro_batch"]
    held = np.where(several, 1.0, at["stack.memory.persistent_gradients"])
    # DualPipe keeps two copies of the parameters, one a direction (DeepSeek-V3 table 2)
    copies = np.where(np.asarray(at["schedule"]) == Schedule.DUALPIPE, 2.0, 1.0)
    resident = state.weights * copies + state.optimizer
    grown = [held * state.gradients + (1.0 - held) * part for part in (0.0, state.head, state.before, state.rest)]
    n = resident.shape[1]
    values = (live.layers, live.remaining, live.left, live.others)
    working = (live.head, live.layer, live.layer, live.embedding)
    moments = np.empty((15, n))
    for i in range(4):
        np.add(resident + state.gathered, grown[i] + values[i] + working[i] + live.named, out=moments[3 * i : 3 * i + 3])
    np.add(resident + state.updating, state.gradients, out=moments[12:15])
    when = np.argmax(moments, axis=0)
    stage, moment = when % 3, when // 3
    rows = stage * n + np.arange(n)

    def of_stage(value: FloatArray, factor: Value = 1.0) -> FloatArray:
        return np.asarray(value.ravel()[rows] * factor, np.float64)

    def by_moment(*values: FloatArray) -> FloatArray:
        return np.asarray(np.choose(moment, [value.ravel()[rows] for value in values]), np.float64)

    nothing = np.zeros((3, n))
    own = live.layers - live.remaining
    parts = {
        "weights": of_stage(state.weights, copies),
        "gradients": by_moment(*grown, state.gradients),
        "optimizer": of_stage(state.optimizer),
        "activations": by_moment(live.layers, live.layers, live.left + own, live.others, nothing),
        "logits": of_stage(live.named, moment < 4) + of_stage(live.loss, moment == 0),
        "working": by_moment(live.head - live.loss, live.layer - own, live.layer - own, live.embedding, nothing)
        + at["stack.memory.workspace"],
        "gathered": by_moment(*[state.gathered] * 4, state.updating),
    }
    peak = moments.ravel()[when * n + np.arange(n)] + at["stack.memory.workspace"]
    overhead = peak * at["stack.memory.fragmentation"] + at["stack.memory.reserve"] + _buffers(at)
    return MemoryUse(
        peak, parts, moments.reshape(5, 3, n).max(axis=0) + at["stack.memory.workspace"], peak + overhead, overhead
    )


def kept_per_stage(at: SymbolTable, blocks: BlockMemory, combination: IntArray, counts: FloatArray) -> FloatArray:
    """Bytes kept by the layers of each stage for one microbatch through all its chunks, (3, n)."""
    kinds = counts.shape[0]
    policy = policy_of(at, len(combination))
    none = np.einsum("ksn,kn->sn", counts, blocks.kept[:kinds, 0][:, combination])
    chosen = np.einsum("ksn,kn->sn", counts, blocks.kept[:kinds][:, policy, combination])
    full = np.einsum("ksn,kn->sn", counts, blocks.kept[:kinds, 2][:, combination])
    share = first_k_share(at, counts)
    first_k = np.asarray(at["recompute"]) == Recompute.FIRST_K
    return np.asarray(np.where(first_k, none + share * (full - none), chosen), np.float64)


def policy_of(at: SymbolTable, n: int) -> IntArray:
    """Index of the block's recomputation policy, (n,); first-k starts from none."""
    code = np.asarray(at["recompute"])
    return np.broadcast_to(np.where(code == Recompute.FIRST_K, 0, code), (n,)).astype(np.int64)


def first_k_share(at: SymbolTable, counts: FloatArray) -> FloatArray:
    """Share of each stage's layers that first-k recomputes, (3, n)."""
    layers = np.maximum(counts.sum(axis=0), 1.0)
    chosen = np.minimum(np.asarray(at["recompute_layers"], np.float64), layers)
    return np.where(np.asarray(at["recompute"]) == Recompute.FIRST_K, chosen / layers, 0.0)


def state_memory(
    at: SymbolTable,
    dense: FloatArray,
    expert: FloatArray,
    counts: FloatArray,
    embedding: Value,
    head: Value,
    rounding: FloatArray,
) -> StateMemory:
    """State of n plans from the (3, n) parameters of a device and the (kinds, 3, n) layer counts.

    `embedding`, `head` (n,) are the parameters of those blocks on a device; `rounding` is `stage_rounding`'s.
    """
    zero = np.asarray(at["zero_stage"])
    shard, expert_shard = shard_ranks(at)
    trained = trained_share(at)

    def sharded(width: str, stage: int, share: Value = 1.0) -> FloatArray:
        split = dense / np.where(zero >= stage, shard, 1) + expert / np.where(zero >= stage, expert_shard, 1)
        added = np.where(zero >= stage, 0.0, rounding[("weights", "gradients", "states").index(width)])
        return np.asarray((split * at[f"optimizer.{width}"] + added) * share, np.float64)

    alone = np.broadcast_to(np.asarray(at["pipeline"]) == 1, dense.shape[1:])
    gradients = sharded("gradients", 2, trained)
    layers = np.maximum(counts.sum(axis=0), 1.0)
    share = np.divide(gradients, dense + expert, out=np.zeros_like(gradients), where=dense + expert > 0)
    ends = np.stack([np.where(alone, head, 0.0), np.where(alone, head, 0.0), np.where(True, head, alone)])
    first = np.stack([np.where(True, embedding, alone), np.where(alone, embedding, 0.0), np.where(alone, embedding, 0.0)])
    in_layers = np.maximum(dense + expert - ends - first, 0.0)
    # DDP's buckets hold a second copy of the gradients
    copied = (at["context"] * at["data"] > 1) & (zero == 0)
    buckets = np.where(copied, at["stack.memory.buckets"], 0.0) * gradients
    on_host = np.asarray(at["offload"]) == Offload.OPTIMIZER
    return StateMemory(
        weights=sharded("weights", 3),
        gradients=gradients,
        head=ends * share,
        before=(ends + in_layers * (1.0 - 1.0 / layers)) * share,
        rest=(ends + in_layers) * share,
        optimizer=np.where(on_host, 0.0, sharded("states", 1, trained)),
        gathered=_gathered(at, dense, expert, counts.sum(axis=0), embedding) + buckets,
        updating=sharded("gradients", 2, trained) / at["optimizer.gradients"] * at["stack.memory.update"],
    )


def _loss(at: SymbolTable, blocks: BlockMemory, combination: IntArray) -> Value:
    """Bytes of log-probabilities and gradients of one microbatch's logits while the loss runs back."""
    cast = blocks.cached[-1][combination] > 0
    copies = at["stack.memory.logits_copies"]
    element = np.where(cast, copies * 4.0 - 2.0, copies * at["stack.loss_bytes"])
    return _logits(at) / at["stack.logits_bytes"] * element


def _logits(at: SymbolTable) -> Value:
    """Bytes of the logits of one microbatch on one device."""
    vocab = at["vocab"] / np.where(at["stack.vocab_parallel"] > 0, at["tensor"], 1)
    return at["micro_batch"] * at["sequence"] / at["context"] * vocab * at["stack.logits_bytes"]


def _gathered(
    at: SymbolTable, dense: FloatArray, expert: FloatArray, layers: FloatArray, embedding_parameters: Value
) -> FloatArray:
    """Bytes of parameters gathered whole at a time under ZeRO-3: two layers, one being used and one arriving, (3, n)."""
    sharded = np.asarray(at["zero_stage"]) >= 3
    per_layer = (dense + expert) / np.maximum(layers, 1.0)
    units = np.maximum(2.0 * per_layer, embedding_parameters) * at["stack.parameter_bytes"]
    return np.where(sharded, units, 0.0)


def _buffers(at: SymbolTable) -> Value:
    """Communication buffers, once there is someone to talk to."""
    return np.where(np.asarray(at["devices"]) > 1, at["stack.memory.buffer"], 0.0)
