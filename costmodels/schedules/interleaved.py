"""Interleaved 1F1B (Narayanan 2021): families of paths where they are exact enough, the recurrence elsewhere.

The families miss less than 1 % where an end is heavier than the middle in forward and backward alike, as embedding and head
are, and microbatches go by the pipeline's width.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from costmodels.schedules.chunks import chunks_of
from costmodels.schedules.groups import group_size
from costmodels.schedules.interleaved_paths import interleaved_paths
from costmodels.schedules.profiles import FloatArray, Profiles, unlike
from costmodels.schedules.recurrence import Walk, longest_each

# a difference between an end's two ways under which the families miss nothing that counts
_ALIKE = 0.05


def interleaved(rows: Profiles) -> FloatArray:
    """Seconds of interleaved 1F1B, (n,)."""
    hard = (rows.p > 1) & ((unlike(rows) > _ALIKE) | (rows.m % rows.p != 0) | (rows.send > 0))
    if not hard.any():
        return interleaved_paths(rows)
    best = np.empty(len(rows.p))
    if not hard.all():
        best[~hard] = interleaved_paths(rows.take(~hard))
    few = rows.take(hard)
    chunks = chunks_of(few)
    kinds = (chunks.head, chunks.first, chunks.middle, chunks.last, chunks.tail)
    seconds = np.stack([[kind.f for kind in kinds], [kind.b for kind in kinds], [np.zeros_like(few.m)] * len(kinds)])
    group = group_size(few.p.astype(np.int64), few.m.astype(np.int64))
    slowest = np.maximum(few.first.f + few.first.b, few.last.f + few.last.b)
    slowest = np.maximum(slowest, np.where(few.p > 2, few.middle.f + few.middle.b, 0.0))
    best[hard] = longest_each(few, seconds, passes, group, slowest)
    return best


@lru_cache(maxsize=128)
def passes(p: int, v: int, m: int, group: int) -> Walk:
    """The passes of `schedule_simulation.interleaved_order` on all ranks; `group` microbatches pass a chunk in a row, or all.

    Slots put them in an order: the k-th forward of rank i in slot i + k, the k-th backward in p − 1 + (v − 1)g + p − 1 − i + k,
    after the forward of that slot. Where g < p a round of forwards takes p slots, as its chunks wait for each other.
    """
    g = min(group, m)
    wide, count = max(g, p), m * v
    k, rank = np.arange(count), np.arange(p)[:, None]
    chunk = k // g % v
    slot = k // g * wide + k % g
    level = np.stack([2 * (rank + slot), 2 * (2 * (p - 1) - rank + (v - 1) * wide + slot) + 1])  # (2, p, count)
    order = np.argsort(level.ravel(), kind="stable")
    place = np.empty(level.size, np.int64)
    place[order] = np.arange(1, level.size + 1)
    forward, backward = place.reshape(level.shape)
    # on a rank: forwards of the warm-up, then one forward and one backward in turn, then the backwards left
    warm = np.minimum(2 * (p - 1 - rank) + (v - 1) * g, count)
    own = np.zeros((p, 2 * count + 1), np.int64)
    turn_forward = np.where(k < warm, k, 2 * k - warm)
    turn_backward = np.where(k < count - warm, warm + 2 * k + 1, count + k)
    np.put_along_axis(own, turn_forward + 1, forward, axis=1)
    np.put_along_axis(own, turn_backward + 1, backward, axis=1)
    before = np.zeros((2, p, count, 3), np.int64)
    before[0, ..., 0] = np.take_along_axis(own, turn_forward, axis=1)
    before[1, ..., 0] = np.take_along_axis(own, turn_backward, axis=1)
    # from the rank below (above, backward), at the ends from the chunk before (after) of the other end
    before[0, 1:, :, 1], before[1, :-1, :, 1] = forward[:-1], backward[1:]
    before[0, 0, :, 1] = np.where(chunk > 0, forward[-1, np.maximum(k - g, 0)], 0)
    turned = forward[-1, np.minimum(k + (v - 1) * g, count - 1)]
    before[1, -1, :, 1] = np.where(chunk > 0, backward[0, np.maximum(k - g, 0)], turned)
    sent = np.zeros((2, p, count, 2))
    sent[..., 0] = before[..., 1] > 0
    sent[1, -1, chunk == 0, 0] = 0.0
    kind = np.tile(np.where(rank == 0, 1, np.where(rank == p - 1, 3, 2)), (2, 1, count))
    kind[0, 0, chunk == 0], kind[0, -1, chunk == v - 1] = 0, 4
    kind[1, 0, chunk == v - 1], kind[1, -1, chunk == 0] = 0, 4
    costs = (*(((0, c),) for c in range(5)), *(((1, c), (2, c)) for c in range(5)))
    kind[1] += 5
    return Walk(before.reshape(-1, 3)[order], sent.reshape(-1, 2)[order], kind.ravel()[order], costs)
