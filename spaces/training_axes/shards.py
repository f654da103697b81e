"""Axes of what a device keeps: sharded state, sequence parallelism, and what the backward pass computes again."""

from __future__ import annotations

import numpy as np

from spaces.columns import Value
from spaces.plan import Recompute, StageLayout
from spaces.space import Axis
from spaces.training_axes.scope import Chosen, Scope, axis_of, divisors, optional


def zero_stage(scope: Scope) -> Axis:
    """What data·context ranks shard; gradients and weights under a pipeline only when asked."""
    named = "zero_stage" in scope.options

    def piped(chosen: Chosen, values: Value) -> Value:
        return np.full(values.shape, named) | (values < 2) | (chosen["pipeline"] == 1)

    return optional(
        "zero_stage",
        scope.levels("zero_stage", range(4)),
        0,
        "one data·context rank has nothing to shard over",
        lambda x, _: x["data"] * x["context"] > 1,
        ("ZeRO 2 and 3 under a pipeline only when zero_stage is named", piped),
    )


def shard_degree(scope: Scope) -> Axis:
    """Ranks that ZeRO shards over: all, or when opened those that fill whole nodes (HSDP), or those asked for."""
    opened, named = "shard_degree" in scope.options, bool(scope.options.get("shard_degree"))

    def divides(chosen: Chosen, values: Value) -> Value:
        ranks = chosen["data"] * chosen["context"]
        return (chosen["zero_stage"] == 0) | ((ranks % values == 0) & (values > 1) if opened else values == ranks)

    def whole(chosen: Chosen, values: Value) -> Value:
        if not opened or named:  # remainders of so many values take long
            return np.ones((1, 1), np.bool_)
        ranks = chosen["data"] * chosen["context"]
        fills = (values * chosen["tensor"]) % scope.node(chosen) == 0
        return (chosen["zero_stage"] == 0) | (values == ranks) | fills

    return optional(
        "shard_degree",
        scope.levels("shard_degree", sorted({s for count in scope.counts for s in divisors(count)})),
        1,
        "nothing is sharded",
        lambda x, _: x["zero_stage"] > 0,
        ("shard group is not a part of the data·context ranks" if opened else "all data·context ranks shard", divides),
        ("shard group does not fill whole nodes", whole),
    )


def sequence_parallel(scope: Scope) -> Axis:
    """Norms and dropout split along the sequence (Korthikanti 2022 §4.2); required where experts meet tensor parallelism."""

    def fits(chosen: Chosen, values: Value) -> Value:
        return (values == 0) | ((scope.sequence // chosen["context"]) % chosen["tensor"] == 0)

    def required(chosen: Chosen, values: Value) -> Value:
        return (values == 1) | (chosen["tensor"] == 1) | np.full(values.shape, scope.architecture.experts == 0)

    return optional(
        "sequence_parallel",
        scope.levels("sequence_parallel", (0, 1)),
        0,
        "one tensor rank has no sequence to split",
        lambda x, _: x["tensor"] > 1,
        ("a rank's sequence not divisible by tensor", fits),
        ("experts with tensor parallelism need sequence parallelism", required),
    )


def _stage_layers(scope: Scope, chosen: Chosen) -> Value:
    """Layers of the fullest stage, (n, 1)."""
    slots = scope.architecture.layers + 2 * (chosen["stage_layout"] == StageLayout.LIGHT_ENDS)
    return -(-slots // chosen["pipeline"])


def _first_k(scope: Scope, layers: Value, k: Value) -> Value:
    """Whether recomputing the first k of a stage's layers is a level: a quarter, half, three quarters, or what was asked."""
    inside = (k >= 1) & (k < layers)
    if scope.options.get("recompute_layers"):
        return inside
    return inside & ((k == layers // 4) | (k == layers // 2) | (k == 3 * layers // 4))


def recompute(scope: Scope) -> Axis:
    """What the backward pass computes again."""
    levels = np.array(_recompute_levels(scope), np.int64)

    def several(chosen: Chosen, values: Value) -> Value:
        some = _first_k(scope, _stage_layers(scope, chosen), levels[None, :]).any(axis=1, keepdims=True)
        return (values != Recompute.FIRST_K) | some

    return axis_of(
        "recompute",
        scope.levels("recompute", Recompute),
        ("no part of a stage's layers between none and all", several),
    )


def _recompute_levels(scope: Scope) -> list[int]:
    """Numbers of layers that `first_k` may recompute."""
    layers = scope.architecture.layers
    per_stage = {-(-slots // p) for slots in (layers, layers + 2) for p in range(1, layers + 1)}
    quarters = {part * each // 4 for each in per_stage for part in (1, 2, 3)}
    return scope.levels("recompute_layers", {k for k in quarters if 1 <= k < layers})


def recompute_layers(scope: Scope) -> Axis:
    """How many layers of a stage `first_k` recomputes."""
    return axis_of(
        "recompute_layers",
        sorted({0, *_recompute_levels(scope)}),
        ("only first_k counts layers", lambda x, k: (x["recompute"] == Recompute.FIRST_K) | (k == 0)),
        (
            "not a quarter, half or three quarters of a stage's layers",
            lambda x, k: (x["recompute"] != Recompute.FIRST_K) | _first_k(scope, _stage_layers(scope, x), k),
        ),
    )
