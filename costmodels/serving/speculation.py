"""Speculative decoding: tokens a step yields, and what drafting them costs (Leviathan 2023, eq. 1)."""

from __future__ import annotations

import numpy as np

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


def draft_held(drafted: Value, share: Value) -> FloatArray:
    """What drafts hold over what the model holds, weights and cache alike: `share`, and nothing where none is drafted."""
    return np.asarray(np.where(np.asarray(drafted) > 0, np.asarray(share, np.float64), 0.0))
