"""Speculative decoding: tokens a step yields, and what drafting them costs (Leviathan 2023, eq. 1)."""

from __future__ import annotations

import numpy as np

from spaces.architecture import Architecture
from spaces.blocks import GraphTraits, build, scalars
from spaces.columns import FloatArray, Value


def accepted_tokens(drafted: Value, acceptance: Value) -> FloatArray:
    """Mean new tokens of one verification of `drafted` tokens, each accepted with chance `acceptance`: (1 − a^(γ+1)) / (1 − a).

    1 where nothing is drafted; γ + 1 where everything is accepted.
    """
    gamma = np.asarray(drafted, np.float64)
    chance = np.clip(np.asarray(acceptance, np.float64), 0.0, 1.0)
    sure = chance > 1.0 - 1e-9
    series = -np.expm1((gamma + 1.0) * np.log(np.maximum(np.where(sure, 0.5, chance), 1e-300))) / (
        1.0 - np.where(sure, 0.5, chance)
    )
    return np.asarray(np.where(gamma > 0, np.where(sure, gamma + 1.0, series), 1.0))


def verified_tokens(drafted: Value) -> FloatArray:
    """New tokens of a request that a step computes: the drafted ones and one of its own."""
    return np.asarray(drafted, np.float64) + 1.0


def draft_time(step: FloatArray, drafted: Value, share: Value) -> FloatArray:
    """Seconds of drafting beside a step: each drafted token costs `share` of what one more token a request would."""
    return np.asarray(step * np.asarray(drafted, np.float64) * share)


def where_drafted(drafted: Value, share: Value) -> FloatArray:
    """`share` of what the model itself takes or holds where tokens are drafted, and nothing where none are."""
    return np.asarray(np.where(np.asarray(drafted) > 0, np.asarray(share, np.float64), 0.0))


def draft_shares(architecture: Architecture, draft: Architecture | None = None, layers: int = 1) -> tuple[float, float]:
    """(what drafting a token costs of a step, what the draft holds of the model's memory), by parameters.

    The draft is a model of its own, or so many more `layers` of the model's and its head once again (as EAGLE and multi-token
    prediction have it), which holds no second head.
    """
    read, held = _parameters(architecture)
    if draft is not None:
        own, kept = _parameters(draft)
        return own / read, kept / held
    kind = build(architecture, GraphTraits()).order[-1]
    return (layers * _layer(architecture, kind, 1.0) + _head(architecture)) / read, layers * _layer(architecture, kind) / held


def _parameters(architecture: Architecture) -> tuple[float, float]:
    """(parameters of layers and head that a token reads, of the experts those it is sent to; all of them)."""
    order = build(architecture, GraphTraits()).order
    ends = _head(architecture)
    read, held = (sum(_layer(architecture, kind, share) for kind in order) for share in (1.0, 0.0))
    return read + ends, held + ends


def _layer(architecture: Architecture, kind: str, chosen: float = 0.0) -> float:
    """Parameters of a layer: all, or with `chosen` those that one token reads."""
    graph, at = build(architecture, GraphTraits()).layers[kind], scalars(architecture)
    whole = float(graph.parameters().evaluate(at))
    share = architecture.experts_per_token / architecture.experts if chosen and architecture.experts else 1.0
    routed = 0.0
    for op in graph.operators:
        for dims in op.weights:
            if "experts" in dims:
                count = 1.0
                for dim in dims:
                    count *= float(graph.size(dim).evaluate(at))
                routed += count
    return whole - routed * (1.0 - share)


def _head(architecture: Architecture) -> float:
    return float(architecture.hidden * architecture.vocab)
