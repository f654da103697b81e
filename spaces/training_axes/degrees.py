"""Axes of the mesh: devices, the degrees that multiply to them, microbatches, and the order of ranks."""

from __future__ import annotations

import numpy as np

from spaces.columns import Value
from spaces.plan import RankOrder
from spaces.space import Axis
from spaces.training_axes.scope import Chosen, Scope, axis_of, divisors, optional, stage_ranks
from spaces.training_axes.stages import is_dealt, virtual_levels


def devices(scope: Scope) -> Axis:
    """How many devices: exactly as many as asked, or any number up to that."""
    return axis_of("devices", scope.counts)


def tensor(scope: Scope) -> Axis:
    """Tensor degrees: they divide heads and MLP width, and devices; key/value heads are split or replicated evenly."""
    model = scope.architecture
    dense = not model.experts or model.dense_layers > 0 or model.moe_every > 1
    return axis_of(
        "tensor",
        scope.levels("tensor", divisors(model.heads)),
        ("heads not divisible by tensor", lambda _, t: model.heads % t == 0),
        (
            "key/value heads neither split nor replicated evenly by tensor",
            lambda _, t: (model.kv_heads % t == 0) | (t % model.kv_heads == 0),
        ),
        ("MLP width not divisible by tensor", lambda _, t: np.full(t.shape, not dense) | (model.ffn % t == 0)),
        ("devices not divisible by tensor", lambda x, t: x["devices"] % t == 0),
    )


def context(scope: Scope) -> Axis:
    """Context degrees: powers of two, each rank with two equal pieces of the sequence (causal balance)."""
    most = max(scope.counts).bit_length()
    return axis_of(
        "context",
        scope.levels("context", [1 << i for i in range(most) if i == 0 or scope.sequence % (2 << i) == 0]),
        ("sequence does not split into 2·context pieces", lambda _, c: (c == 1) | (scope.sequence % (2 * c) == 0)),
        ("devices not divisible by tensor·context", lambda x, c: x["devices"] % (x["tensor"] * c) == 0),
    )


def pipeline(scope: Scope) -> Axis:
    """Stages: at most one per layer, dealt by some layout."""
    layers = scope.architecture.layers
    every = sorted({p for count in scope.counts for p in divisors(count) if p <= layers})
    chunks = np.array(virtual_levels(scope), np.int64)

    def dealt(_: Chosen, values: Value) -> Value:
        return (values == 1) | is_dealt(scope, values[..., None], chunks).any(axis=-1)

    return axis_of(
        "pipeline",
        scope.levels("pipeline", every),
        ("more stages than layers", lambda _, p: p <= layers),
        ("layers cannot be dealt to the stages", dealt),
        (
            "devices not divisible by tensor·context·pipeline",
            lambda x, p: x["devices"] % (x["tensor"] * x["context"] * p) == 0,
        ),
    )


def data(scope: Scope) -> Axis:
    """Replicas: what is left of the devices, dividing the global batch."""
    every = sorted({d for count in scope.counts for d in divisors(count)})
    return axis_of(
        "data",
        scope.levels("data", every),
        ("global batch not divisible by data", lambda _, d: scope.global_batch % d == 0),
        (
            "tensor·context·pipeline·data is not the number of devices",
            lambda x, d: x["tensor"] * x["context"] * x["pipeline"] * d == x["devices"],
        ),
    )


def micro_batch(scope: Scope) -> Axis:
    """Sequences per microbatch: they divide a replica's share of the global batch, which is never changed."""
    return axis_of(
        "micro_batch",
        scope.levels("micro_batch", divisors(scope.global_batch)),
        (
            "global batch not divisible by data·micro_batch",
            lambda x, b: scope.global_batch % (x["data"] * b) == 0,
        ),
    )


def expert(scope: Scope) -> Axis:
    """Expert degrees: they divide the experts and re-mesh the ranks of a stage."""
    experts = scope.architecture.experts
    return optional(
        "expert",
        scope.levels("expert", divisors(experts) if experts else [1]),
        1,
        "the model has no experts",
        lambda _, e: np.full(e.shape, experts > 0),
        ("experts not divisible by expert degree", lambda _, e: (e == 1) | (experts % e == 0)),
        ("ranks of a stage not divisible by expert degree", lambda x, e: stage_ranks(x) % e == 0),
    )


def expert_tensor(scope: Scope) -> Axis:
    """Degrees that split one expert: 1 unless asked."""
    model = scope.architecture
    return optional(
        "expert_tensor",
        scope.levels("expert_tensor", divisors(model.heads) if model.experts else [1]),
        1,
        "the model has no experts",
        lambda _, t: np.full(t.shape, model.experts > 0),
        ("expert width not divisible by expert_tensor", lambda _, t: (t == 1) | (model.moe_ffn % t == 0)),
        (
            "ranks of a stage not divisible by expert_tensor·expert",
            lambda x, t: stage_ranks(x) % (t * x["expert"]) == 0,
        ),
    )


def rank_order(scope: Scope) -> Axis:
    """Placement of the mesh: two orders where both data and pipeline have neighbours."""
    return optional(
        "rank_order",
        scope.levels("rank_order", RankOrder),
        RankOrder.TENSOR_CONTEXT_DATA_PIPELINE,
        "data or pipeline of one: both orders are the same",
        lambda x, _: (x["pipeline"] > 1) & (x["data"] > 1),
    )
