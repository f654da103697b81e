"""Prefill and decode on devices of different kinds (Splitwise, Patel et al., ISCA 2024): the best split of a budget.

A pool of x prefill machines passes x·r_p requests a second, one of y decode machines y·r_d; what both pass is the smaller.
Under a budget that each machine takes a part of (dollars an hour, watts) the best split balances the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spaces.columns import FloatArray, Value


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """Machines of each pool and the requests a second that both pass; arrays that broadcast."""

    prefill: FloatArray
    decode: FloatArray
    rate: FloatArray


def best_split(prefill_rate: Value, decode_rate: Value, prefill_cost: Value, decode_cost: Value, budget: Value) -> Split:
    """The split that passes most, machines taken as divisible: rate = budget / (c_p / r_p + c_d / r_d)."""
    rate = np.asarray(budget, np.float64) / (np.asarray(prefill_cost) / prefill_rate + np.asarray(decode_cost) / decode_rate)
    return Split(prefill=np.asarray(rate / prefill_rate), decode=np.asarray(rate / decode_rate), rate=rate)


def whole_split(prefill_rate: float, decode_rate: float, prefill_cost: float, decode_cost: float, budget: float) -> Split:
    """The same in whole machines, every count tried at once; no machines where the budget does not pay for one of each."""
    x = np.arange(1, int(budget // prefill_cost) + 1, dtype=np.float64)
    y = np.floor((budget - x * prefill_cost) / decode_cost)
    rate = np.minimum(x * prefill_rate, y * decode_rate)
    if not len(x) or rate.max() <= 0:
        return Split(prefill=np.zeros(()), decode=np.zeros(()), rate=np.zeros(()))
    place = int(np.argmax(rate))
    needed = np.ceil(rate[place] / decode_rate - 1e-12)
    return Split(prefill=x[place], decode=needed, rate=rate[place])


def best_kinds(
    prefill_rate: FloatArray, decode_rate: FloatArray, cost: FloatArray, budget: float
) -> tuple[int, int, FloatArray]:
    """(kind for prefill, kind for decode, rates (kinds, kinds)) of the best pair among kinds of devices, each rate (kinds,)."""
    split = best_split(prefill_rate[:, None], decode_rate[None, :], cost[:, None], cost[None, :], budget)
    first, second = np.unravel_index(int(np.argmax(split.rate)), split.rate.shape)
    return int(first), int(second), split.rate
