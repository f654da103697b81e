"""Peak memory of a training step: a timeline counted per stage, not a sum.

Three moments can be the peak: the start of the backward pass at the head (logits and their gradients), the backward pass of a
layer (remaining activations, that layer's own tensors, gradients so far), and the optimizer step. Each part is bytes by dtype;
activations are what the graph says is kept, times the microbatches in flight.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from costmodels.block_memory import FRESH, HELD, BlockMemory, loss_bytes
from costmodels.data_parallel import shard_ranks
from costmodels.factors import gathered
from costmodels.schedule import in_flight
from costmodels.sharded_memory import all_gradients, kept_for_pipeline, sharded_moments
from costmodels.step_moments import ActivationMemory, StateMemory, fullest_pass, whole_moments
from spaces.columns import FloatArray, IntArray, Value
from spaces.expressions import SymbolTable
from spaces.plan import Offload, Recompute, Schedule, Trainable
from spaces.stages import FIRST, LAST, MIDDLE, StageTable

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "working", "gathered")
"""Parts of the allocator's peak, in report order."""


@dataclass(frozen=True, slots=True, eq=False)
class MemoryUse:
    """Bytes on the device that needs most, arrays of shape (n,).

    `peak` is the allocator's peak; `parts` sum to it, and are none where not asked for; `device` adds fragmentation, context
    and communication buffers (`overhead`), and is what must fit.
    """

    peak: FloatArray
    parts: dict[str, FloatArray]
    device: FloatArray
    overhead: FloatArray


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
    flights = in_flight(at["schedule"], pipeline, virtual, microbatches, positions) / virtual
    entry = np.zeros_like(kept)
    entry[FIRST] = blocks.kept[kinds, 0][combination]
    entry[LAST] = np.where(alone, entry[FIRST], 0.0)
    steady = microbatches > flights
    held = gradients_held(at, steady)
    policy = policy_of(at, len(combination))

    def worst(block: int, stage: int | slice = slice(None)) -> FloatArray:
        return np.asarray(blocks.backward[block, held[stage], policy, combination], np.float64)

    layer = np.stack([worst(kind) for kind in range(kinds)]).max(axis=0)
    head, embedding, loss, named = (np.zeros_like(kept) for _ in range(4))
    head[LAST], embedding[FIRST], loss[LAST] = worst(kinds + 1, LAST), worst(kinds, FIRST), _loss(at, blocks, combination)
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
    if np.any(np.asarray(at["stack.memory.sends_held"]) > 0):
        running = running + _sent(at, pipeline, microbatches)
    others = running - kept - entry
    buffered = _buffered(at)
    found = ActivationMemory(
        layers=running,
        remaining=running - per_layer,
        left=others + entry,
        others=others,
        head=head,
        layer=np.where(layers > 0, layer, 0.0),
        embedding=embedding,
        loss=loss,
        named=named,
        ends={} if buffered else _ends(at, blocks, combination, alone) | {"steady": 1.0 * steady, "single": kept + entry},
        fullest={},
    )
    return replace(found, fullest=fullest_pass(found)) if buffered else found


def _sent(at: SymbolTable, pipeline: Value, microbatches: Value) -> FloatArray:
    """Bytes sent to neighbours, where the training loop holds all it has sent until the step ends: what goes up in every
    microbatch, what comes down in all but the one that runs."""
    stream = at["micro_batch"] * at["sequence"] / at["context"] * at["hidden"] * 2.0
    size = np.where(pipeline > 1, stream * at["stack.memory.sends_held"], 0.0)
    up, down = size * microbatches, size * (microbatches - 1.0)
    return np.stack([up, np.where(pipeline > 2, up + down, np.where(pipeline == 2, down, 0.0)), down])


def _ends(at: SymbolTable, blocks: BlockMemory, combination: IntArray, alone: NDArray[np.bool_]) -> dict[str, FloatArray]:
    """The logits of a microbatch, and what the head keeps, on the stages that have one."""
    found = {"output": _logits(at), "entering": blocks.kept[-1, 0][combination]}
    return {name: np.stack([np.where(alone, value, 0.0), 0.0 * alone, value + 0.0 * alone]) for name, value in found.items()}


def _buffered(at: SymbolTable) -> bool:
    """Whether the stack always keeps a buffer for the gradients."""
    return bool(np.all(np.asarray(at["stack.memory.persistent_gradients"]) > 0))


def gradients_held(at: SymbolTable, steady: NDArray[np.bool_]) -> IntArray:
    """`HELD` where gradients exist when a backward pass begins with all its microbatches in flight, `FRESH` elsewhere, (3, n).

    They do where there are more microbatches than fit in flight (`steady`), unless sharding takes the whole ones away after
    each, and where the stack keeps a buffer for them.
    """
    if _buffered(at):
        return np.full(steady.shape, HELD)
    persistent = np.asarray(at["stack.memory.persistent_gradients"]) > 0
    whole = (np.asarray(at["zero_stage"]) < 2) | kept_for_pipeline(at)
    return np.where(persistent | (steady & whole), HELD, FRESH)


def memory_use(
    at: SymbolTable, live: ActivationMemory, by_live: IntArray, state: StateMemory, by_state: IntArray, parts: bool = True
) -> MemoryUse:
    """The timeline's peak over stages and moments of n plans, and its parts where asked for.

    `by_live`, `by_state` (n,): each plan's row of `live` and of `state`.
    """
    # DualPipe keeps two copies of the parameters, one a direction (DeepSeek-V3 table 2)
    dual = np.asarray(at["schedule"]) == Schedule.DUALPIPE
    copies = np.where(dual, 2.0, 1.0) if np.any(dual) else 1.0
    if live.fullest:
        peak, found = _peak_beside_gradients(live, by_live, state, by_state, copies, parts)
    else:
        peak, found = _peak(at, gathered(live, by_live), gathered(state, by_state), copies)
    workspace = at["stack.memory.workspace"]
    if found:
        found["working"] = found["working"] + workspace
    peak = peak + workspace
    overhead = peak * at["stack.memory.fragmentation"] + at["stack.memory.reserve"] + _buffers(at)
    return MemoryUse(peak, found, peak + overhead, overhead)


def _peak_beside_gradients(
    live: ActivationMemory, by_live: IntArray, state: StateMemory, by_state: IntArray, copies: Value, parts: bool
) -> tuple[FloatArray, dict[str, FloatArray]]:
    """Peak and parts where gradients are always there: the fullest moment of the passes, or the update."""
    passing = live.fullest["total"].take(by_live, axis=1) + state.beside.take(by_state, axis=1)
    updating = state.update.take(by_state, axis=1)
    first, middle, last = np.maximum(passing, updating) + state.weights.take(by_state, axis=1) * copies
    peak = np.maximum(np.maximum(first, middle), last)
    if not parts:
        return peak, {}
    in_last = last > np.maximum(first, middle)
    in_middle = (middle > first) & ~in_last
    stage = 2 * in_last.astype(np.int64) + in_middle
    passes = passing >= updating
    passes = np.where(in_last, passes[LAST], np.where(in_middle, passes[MIDDLE], passes[FIRST]))
    in_live, in_state = stage * live.layers.shape[1] + by_live, stage * state.weights.shape[1] + by_state

    def of_stage(part: FloatArray, place: IntArray) -> FloatArray:
        return part.ravel().take(place)

    named = {part: of_stage(live.fullest[part], in_live) * passes for part in ("activations", "logits", "working")}
    return peak, {
        "weights": of_stage(state.weights, in_state) * copies,
        "gradients": of_stage(state.gradients, in_state),
        "optimizer": of_stage(state.optimizer, in_state),
        **named,
        "gathered": np.where(passes, of_stage(state.gathered, in_state), of_stage(state.updating, in_state)),
    }


def _peak(
    at: SymbolTable, live: ActivationMemory, state: StateMemory, copies: Value
) -> tuple[FloatArray, dict[str, FloatArray]]:
    """Peak and parts of n plans whose gradients may come and go."""
    several = at["global_batch"] > at["data"] * at["micro_batch"]
    live, held = _settled(at, live, state, several)
    resident = state.weights * copies + state.optimizer
    n = resident.shape[1]
    moments = whole_moments(live, state, held)
    totals = np.stack([moment.total() for moment in moments])
    if state.units and np.any(sharded := np.broadcast_to(np.asarray(at["zero_stage"]) >= 3, (n,))):
        more = tuple(sharded_moments(at, live, state, held))
        totals[:-1, :, sharded] = -np.inf
        totals = np.concatenate([totals, np.stack([np.where(sharded, moment.total(), -np.inf) for moment in more])])
        moments += more
    totals += resident
    totals = totals.reshape(totals.shape[0] * totals.shape[1], n)
    when = np.argmax(totals, axis=0)
    stage, moment = when % 3, when // 3
    rows = stage * n + np.arange(n)

    def of_moment(part: str) -> FloatArray:
        return np.asarray(np.choose(moment, [getattr(one, part).ravel()[rows] for one in moments]), np.float64)

    parts = {name: of_moment(name) for name in ("gradients", "activations", "logits", "working", "gathered")}
    parts["weights"] = state.weights.ravel()[rows] * copies
    parts["optimizer"] = state.optimizer.ravel()[rows]
    return totals[when, np.arange(n)], {name: parts[name] for name in PARTS}


def _settled(
    at: SymbolTable, live: ActivationMemory, state: StateMemory, several: Value
) -> tuple[ActivationMemory, FloatArray | float]:
    """Activations and whether gradients exist beside them (1 or 0) at the fullest backward pass of each stage.

    Where all microbatches are in flight before the first runs back, there are no gradients yet; the second has them, and one
    microbatch less: the fuller of the two counts.
    """
    if not live.ends:
        return live, 1.0
    persistent = np.asarray(at["stack.memory.persistent_gradients"]) > 0
    single = live.ends["single"]
    steady = persistent | ((live.ends["steady"] > 0) & several)
    second = ~steady & several & (all_gradients(at, state) > single)
    less = np.where(second, single, 0.0)
    fewer = {name: np.maximum(getattr(live, name) - less, 0.0) for name in ("layers", "remaining", "left", "others")}
    return replace(live, **fewer), np.where(steady | second, 1.0, 0.0)


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
    tied: bool,
    rounding: FloatArray,
) -> StateMemory:
    """State of n plans from the (3, n) parameters of a device and the (kinds, 3, n) layer counts.

    `embedding`, `head` (n,) are the parameters of those blocks on a device, one table where `tied`; `rounding` is
    `stage_rounding`'s.
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
    optimizer = np.where(on_host, 0.0, sharded("states", 1, trained))
    whole = _gathered(at, dense, expert, counts.sum(axis=0), embedding) + buckets
    twice = trained * embedding * at["optimizer.gradients"] * (alone & tied & (not _buffered(at)))
    updating = gradients / at["optimizer.gradients"] * at["stack.memory.update"]
    return StateMemory(
        weights=sharded("weights", 3),
        gradients=gradients,
        head=ends * share,
        before=(ends + in_layers * (1.0 - 1.0 / layers)) * share,
        rest=(ends + in_layers) * share,
        optimizer=optimizer,
        gathered=whole,
        twice=np.broadcast_to(twice, gradients.shape),
        updating=updating,
        beside=gradients + whole + optimizer,
        update=gradients + updating + optimizer,
        units={} if _buffered(at) else _units(in_layers, layers, ends, first),
    )


def _units(in_layers: FloatArray, layers: FloatArray, ends: FloatArray, first: FloatArray) -> dict[str, FloatArray]:
    """Parameters of what is gathered at a time: a layer, and the root with embedding and head."""
    depth = np.broadcast_to(layers, in_layers.shape).astype(np.float64)
    return {"layer": in_layers / depth, "depth": depth, "root": ends + first, "head": ends, "table": np.maximum(ends, first)}


def _loss(at: SymbolTable, blocks: BlockMemory, combination: IntArray) -> Value:
    """Bytes of log-probabilities and gradients of one microbatch's logits while the loss runs back."""
    cast = blocks.cached[-1][combination] > 0
    element = np.where(cast, loss_bytes(at, 4.0) - 2.0, loss_bytes(at, at["stack.loss_bytes"]))
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
