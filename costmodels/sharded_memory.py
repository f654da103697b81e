"""Moments of a step whose parameters are sharded over data ranks and gathered a unit at a time (FSDP2, ZeRO-3).

A unit is a layer; embedding, last norm and head are one more, the root. Counted as PyTorch's `fully_shard` runs it: a gather
lands in a flat buffer and is copied out beside it; the next unit is gathered while one runs back; gradients stay whole until
their unit's backward pass ends, are copied into a flat buffer for the reduce-scatter, and that buffer lives until the next
unit's turn (torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py and _fsdp_collectives.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from costmodels.step_moments import ActivationMemory, Moment, StateMemory
from spaces.columns import FloatArray, Value
from spaces.expressions import SymbolTable


def kept_for_pipeline(at: SymbolTable) -> Value:
    """True where a pipeline's microbatches share one gather of the parameters and one reduction of their gradients.

    torchtitan does not reshard after the forward pass under a pipeline, and reduces in the last microbatch alone
    (torchtitan/parallelisms: parallelize_llama.py, apply_fsdp; pipelining_utils.py, _configure_data_parallel_mode).
    """
    return (np.asarray(at["pipeline"]) > 1) & (np.asarray(at["stack.memory.pipeline_keeps"]) > 0)


def stays_gathered(at: SymbolTable) -> Value:
    """1 where parameters that were gathered forward are there for the backward pass, 0 where they are let go."""
    return np.where(kept_for_pipeline(at), 1.0, 1.0 - np.asarray(at["stack.memory.reshard"]))


def all_gradients(at: SymbolTable, state: StateMemory) -> FloatArray:
    """Bytes of the gradients that wait for later microbatches, (3, n): a rank's shard, or all where none is reduced before."""
    if not state.units:
        return state.gradients
    whole = (state.units["layer"] * state.units["depth"] + state.units["root"]) * at["optimizer.gradients"]
    waiting = kept_for_pipeline(at) & (np.asarray(at["zero_stage"]) >= 3)
    return np.asarray(np.where(waiting, whole, state.gradients), np.float64)


def sharded_moments(at: SymbolTable, live: ActivationMemory, state: StateMemory, held: Value) -> Iterator[Moment]:
    """Every moment of n plans that can be the peak. `held` (n,): 1 where gradients exist from an earlier microbatch."""
    units, depth = state.units, state.units["depth"]
    width = at["stack.parameter_bytes"]
    layer, root, head = (units[name] * width for name in ("layer", "root", "head"))
    # a reduce-scatter's flat buffer; a layer's share of the sharded gradients
    copied = units["layer"] * at["optimizer.gradients"]
    gradients = all_gradients(at, state)
    one = gradients * units["layer"] / np.maximum(units["layer"] * depth + units["root"], 1.0)
    # where parameters stay gathered after the forward pass, nothing is gathered again
    kept = stays_gathered(at)
    whole = kept * (layer * depth + root)
    two, three = (np.where(depth > count, 1.0, 0.0) for count in (1, 2))
    unit, rooted = (1.0 - kept) * layer, (1.0 - kept) * root
    ahead = unit * two
    own = live.layers - live.remaining
    nothing = np.zeros_like(layer)
    logits, entering = live.named + live.ends["output"], live.ends["entering"]

    def sharded(layers: Value) -> FloatArray:
        return np.asarray(held * gradients + (1.0 - held) * one * layers, np.float64)

    # the loss; the root gathered and copied out; the head's products
    yield Moment(sharded(0.0), live.layers, live.named + live.loss, live.head - live.loss, whole)
    yield Moment(sharded(0.0), live.layers, logits, entering, whole + 2.0 * rooted)
    head = head + state.twice
    yield Moment(sharded(0.0) + head, live.layers, logits, 1.5 * entering, whole + rooted + unit)
    # the layers that run back first, second, last but one and last, the next one gathered beside them
    beside = whole + rooted + unit + ahead
    working, late = live.layer - own, live.left + own
    yield Moment(sharded(0.0) + head, live.layers, live.named, working, beside)
    yield Moment(sharded(1.0) + head + copied, live.remaining * three, live.named, working * three, beside)
    yield Moment(sharded(depth - 2.0) + head + copied, (late + own) * three, live.named, working * three, beside)
    yield Moment(sharded(depth - 1.0) + head + copied * two, late, live.named, working, whole + rooted + unit)
    # between the first two: the second copied out while the gradients of the first are on their way
    yield Moment((sharded(1.0) + copied) * two + head, live.remaining, live.named, entering / 2.0, whole + rooted + 2.0 * ahead)
    # the embedding; the root's gradients copied for their reduction, and widened where that is in fp32
    yield Moment(sharded(depth) + head + state.twice + copied, live.others, live.named, live.embedding, whole + rooted)
    wide = np.where(np.asarray(at["optimizer.gradients"]) > width, units["table"] * width, 0.0)
    reduced = sharded(depth) + root + units["root"] * at["optimizer.gradients"] + wide
    yield Moment(reduced, live.others, live.named, nothing, nothing)
