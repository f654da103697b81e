"""Interleaved 1F1B (Narayanan 2021): families of paths where they are exact enough, the recurrence elsewhere.

The families miss less than 1 % where an end is heavier than the middle in forward and backward alike, as embedding and head
are, and microbatches go by the pipeline's width.
"""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np

from costmodels.schedules.chunks import chunks_of
from costmodels.schedules.groups import group_size
from costmodels.schedules.interleaved_paths import interleaved_paths
from costmodels.schedules.orders import input_of, interleaved_order
from costmodels.schedules.profiles import FloatArray, Profiles, unlike
from costmodels.schedules.recurrence import Walk, longest_each, walk

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
    best[hard] = longest_each(few, seconds, _walk, group, slowest)
    return best


@lru_cache(maxsize=128)
def _walk(p: int, v: int, m: int) -> Walk:
    group = int(group_size(p, m))
    orders = [interleaved_order(rank, p, m, v, group) for rank in range(p)]
    ends = {(0, 0): 0, (p - 1, v - 1): 4}
    places = [[ends.get((rank, c), 1 if rank == 0 else 3 if rank == p - 1 else 2) for c in range(v)] for rank in range(p)]
    return walk(orders, places, partial(input_of, pipeline=p, chunks=v))
