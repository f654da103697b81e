"""What is alive at the moments of a step that can be its peak; arrays of (3, n): first, heaviest middle and last stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from spaces.columns import FloatArray, Value


@dataclass(frozen=True, slots=True, eq=False)
class ActivationMemory:
    """Bytes that grow with the microbatch, per stage profile, each (3, n).

    `layers`: kept over all microbatches in flight when a backward pass begins; `remaining`: without the layer whose backward
    runs first; `left`: when it reaches its last layer, without that one; `others`: those of other microbatches alone.
    `head`, `layer`, `embedding`: the worst moment of such a block's own backward pass, what it kept included (0 where the
    stage has none); `loss`: the part of the head's that is logits, log-probabilities and their gradients; `named`: logits that
    the training loop still holds. `ends`, by name, only where gradients come and go: `output`, the logits themselves,
    `entering`, what the head keeps, `single`, what one microbatch keeps, and `steady`, 1 where more microbatches come than fit
    in flight. `fullest`, by part, only where gradients are always there: the moment of the passes at which most is alive.
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
    ends: Mapping[str, FloatArray]
    fullest: Mapping[str, FloatArray]


@dataclass(frozen=True, slots=True, eq=False)
class StateMemory:
    """Bytes that parameters cost, per stage profile, each (3, n), after sharding.

    `weights`, `gradients` (all of them, `head` of the head alone, `before` all but the last layer's and the embedding's, `rest`
    all but the embedding's), `optimizer` state, `gathered`: parameters whole at a time under ZeRO-3, or the buckets of DDP;
    `twice`: a gradient of the table that embedding and head share, where it is made twice and then added; and `updating`:
    temporaries of the optimizer's update. `beside`, `update`: all that is there beside the weights in a pass
    and in the update, where gradients are whole. `units`, by name, only where gradients come and go: parameters of what ZeRO-3
    gathers (`layer`, `root`; its `head` and largest `table`) and the `depth` in layers.
    """

    weights: FloatArray
    gradients: FloatArray
    head: FloatArray
    before: FloatArray
    rest: FloatArray
    optimizer: FloatArray
    gathered: FloatArray
    twice: FloatArray
    updating: FloatArray
    beside: FloatArray
    update: FloatArray
    units: Mapping[str, FloatArray]


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """Bytes at one moment of a step by part, (3, n) each; weights and optimizer state come on top."""

    gradients: FloatArray
    activations: FloatArray
    logits: FloatArray
    working: FloatArray
    gathered: FloatArray

    def total(self) -> FloatArray:
        """Sum of the parts, (3, n)."""
        return self.gradients + self.activations + self.logits + self.working + self.gathered


def fullest_pass(live: ActivationMemory) -> dict[str, FloatArray]:
    """Parts of the fullest moment of the passes, and their `total`, (3, n) each, where gradients are always there: all else
    is the same at those moments."""
    nothing = np.zeros_like(live.layers)
    moments = whole_moments(live, StateMemory(*(nothing,) * 11, units={}), 1.0)[:-1]
    totals = np.stack([moment.total() for moment in moments])
    when = np.argmax(totals, axis=0)[None]
    found = {"total": np.take_along_axis(totals, when, axis=0)[0]}
    for part in ("activations", "logits", "working"):
        values = np.stack([getattr(moment, part) for moment in moments])
        found[part] = np.take_along_axis(values, when, axis=0)[0]
    return found


def whole_moments(live: ActivationMemory, state: StateMemory, held: Value) -> tuple[Moment, ...]:
    """Moments where every device has all its parameters and gradients: the loss, the first and the last layer to run back, the
    embedding, the update. `held` (n,): 1 where gradients exist before the backward pass.

    The head's gradient of a shared table waits for the embedding's, and their sum is a third (AccumulateGrad runs once).
    """
    own = live.layers - live.remaining
    nothing = np.zeros_like(own)
    before, after, rest = (held * state.gradients + (1.0 - held) * part for part in (state.head, state.before, state.rest))
    return (
        Moment(held * state.gradients, live.layers, live.named + live.loss, live.head - live.loss, state.gathered),
        Moment(before + state.twice, live.layers, live.named, live.layer - own, state.gathered),
        Moment(after + state.twice, live.left + own, live.named, live.layer - own, state.gathered),
        Moment(rest + 2.0 * state.twice, live.others, live.named, live.embedding, state.gathered),
        Moment(state.gradients, nothing, nothing, nothing, state.updating),
    )
