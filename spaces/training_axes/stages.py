"""Axes of the pipeline: chunks a device, how layers are dealt to them, and the schedule."""

from __future__ import annotations

import numpy as np

from spaces.columns import Value
from spaces.plan import Schedule, StageLayout
from spaces.space import Axis
from spaces.training_axes.scope import Chosen, Scope, divisors, microbatches_of, optional


def _layouts(scope: Scope, pipeline: Value, virtual: Value) -> tuple[Value, Value]:
    """Whether the layers can be dealt to pipeline · virtual chunks evenly, and with lighter ends; shapes broadcast.

    Lighter ends: the first and the last chunk hold one layer less, none at the least (Llama 3 §3.3.2); with two chunks that is
    the even layout. Layers that fit neither are dealt as evenly as they go when each device holds one chunk.
    """
    layers, chunks = scope.architecture.layers, np.asarray(pipeline * virtual)
    divides = layers % chunks == 0
    light = (chunks > 2) & ((layers + 2) % chunks == 0) & (layers + 2 >= chunks)
    ragged = np.asarray(scope.uneven & (virtual == 1) & ~divides & ~light & (chunks <= layers))
    return divides | ragged, light


def is_dealt(scope: Scope, pipeline: Value, virtual: Value) -> Value:
    """Whether a layout that may be chosen deals the layers to pipeline · virtual chunks; shapes broadcast."""
    even, light = _layouts(scope, pipeline, virtual)
    wanted = scope.levels("stage_layout", StageLayout)
    dealt = (even & (StageLayout.EVEN in wanted)) | (light & (StageLayout.LIGHT_ENDS in wanted))
    return np.where(pipeline == 1, virtual == 1, dealt)


def virtual_levels(scope: Scope) -> list[int]:
    """Chunks per device worth an axis: one, and with two stages or more what divides the layers, or the layers and two."""
    layers = scope.architecture.layers
    if Schedule.INTERLEAVED not in scope.levels("schedule", Schedule):
        return [1]
    every = {1, *divisors(layers), *divisors(layers + 2)}
    return scope.levels("virtual", {v for v in every if v == 1 or 2 * v <= layers})


def virtual(scope: Scope) -> Axis:
    """Chunks per device: more than one is the interleaved schedule, which takes microbatches by the pipeline's width."""
    return optional(
        "virtual",
        virtual_levels(scope),
        1,
        "one stage has one chunk",
        lambda x, v: (x["pipeline"] > 1) & (v > 0),
        ("layers cannot be dealt to pipeline·virtual chunks", lambda x, v: is_dealt(scope, x["pipeline"], v)),
        (
            "interleaving needs microbatches in multiples of the pipeline",
            lambda x, v: (v == 1) | (microbatches_of(scope, x) % x["pipeline"] == 0),
        ),
    )


def stage_layout(scope: Scope) -> Axis:
    """How layers are dealt: of the two layouts, whichever divides the layers."""

    def legal(chosen: Chosen, values: Value) -> Value:
        even, light = _layouts(scope, chosen["pipeline"], chosen["virtual"])
        return np.where(values == StageLayout.EVEN, even, light)

    return optional(
        "stage_layout",
        scope.levels("stage_layout", StageLayout),
        StageLayout.EVEN,
        "one stage has one layout",
        lambda x, _: x["pipeline"] > 1,
        ("layers do not divide by this layout", legal),
    )


def schedule(scope: Scope) -> Axis:
    """Order of microbatches: interleaved exactly with several chunks per device, the others with one."""

    def chunks(chosen: Chosen, values: Value) -> Value:
        return (values == Schedule.INTERLEAVED) == (chosen["virtual"] > 1)

    def several(chosen: Chosen, values: Value) -> Value:
        return (values != Schedule.GPIPE) | (microbatches_of(scope, chosen) > 1)

    def both_ways(chosen: Chosen, values: Value) -> Value:
        count, stages = microbatches_of(scope, chosen), chosen["pipeline"]
        return (values != Schedule.DUALPIPE) | ((stages % 2 == 0) & (count % 2 == 0) & (count >= 2 * stages))

    return optional(
        "schedule",
        scope.levels("schedule", Schedule),
        Schedule.ONE_F_ONE_B,
        "one stage has one schedule",
        lambda x, _: x["pipeline"] > 1,
        ("interleaved means more than one chunk per device, the others one", chunks),
        ("GPipe of one microbatch is 1F1B", several),
        ("DualPipe needs an even pipeline and twice as many microbatches, an even number", both_ways),
    )
