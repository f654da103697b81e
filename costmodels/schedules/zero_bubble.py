"""ZB-H1 (Qi 2023): 1F1B whose weight gradients fill the drain.

Families of paths as under 1F1B, which miss little where there are many microbatches, or where ends are heavier than the middle
in forward and backward alike; the recurrence elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial

import numpy as np

from costmodels.schedules.one_f_one_b import loops
from costmodels.schedules.orders import input_of, zero_bubble_order
from costmodels.schedules.places import Place, places
from costmodels.schedules.profiles import FloatArray, Profiles, Seconds, stage_seconds, unlike
from costmodels.schedules.recurrence import Walk, longest_each, walk

# a difference between an end's two ways, and microbatches in pipelines, from which on the families miss nothing that counts
_ALIKE = 0.05
_MANY = 6


def zero_bubble(rows: Profiles) -> FloatArray:
    """Seconds of ZB-H1, (n,)."""
    best = zero_bubble_paths(rows)
    hard = (rows.p > 1) & (rows.m > 2) & (rows.m < np.maximum(_MANY * rows.p, 16)) & (unlike(rows) > _ALIKE)
    if hard.any():
        few = rows.take(hard)
        # every microbatch is walked
        best[hard] = longest_each(few, stage_seconds(few), _walk, few.m.astype(np.int64), few.m)
    return best


@lru_cache(maxsize=128)
def _walk(p: int, _: int, m: int, __: int) -> Walk:
    orders = [zero_bubble_order(rank, p, m) for rank in range(p)]
    places = [[0 if rank == 0 else 2 if rank == p - 1 else 1] for rank in range(p)]
    return walk(orders, places, partial(input_of, pipeline=p, chunks=1))


def zero_bubble_paths(rows: Profiles) -> FloatArray:
    """Longest path of ZB-H1 (Qi 2023, fig. 3), (n,); `Seconds.b` and `Place.b` are input gradients alone in here.

    Stage i holds back i weight gradients: they run beside its backwards from slot p − 1 + i on, the last ones at the end.
    """
    ends = (Seconds(end.f, end.b - end.w, end.w) for end in (rows.first, rows.middle, rows.mean, rows.last))
    rows = Profiles(rows.p, rows.v, rows.m, rows.send, *ends)
    best = _dwelling_split(rows, places(rows))
    few = rows.m <= rows.p
    if few.any():
        short = rows.take(few)
        begin, held = short.p - short.m, short.m - 1
        low, high = np.minimum(begin, held), np.maximum(begin + 1, held)
        stages = places(short, turns=[low, 2 * begin + 1 + held - low - high, high])
        longest = np.maximum(_dwelling_split(short, stages), _turning_split(short, stages))
        best[few] = np.maximum(best[few], longest)
    return best


def _drain_split(rows: Profiles, top: Place, wait: Place, end: Place, done: FloatArray) -> FloatArray:
    """From B(top, done) to the end of stage `end`, the backwards left spent on stage `wait`, end ≤ wait ≤ top, (n,)."""
    m = rows.m
    falls = top.sum_b - end.sum_b + end.b + (top.index - end.index) * rows.send
    waits = (m - 1 - done) * wait.b + np.maximum(m - 1 - np.maximum(done, wait.index), 0) * wait.w
    return np.asarray(falls + waits + np.minimum(m, end.index + 1) * end.w)


def _dwelling_split(rows: Profiles, stages: Sequence[Place]) -> FloatArray:
    """As `_dwelling`, (n,), for paths that dwell on one stage, or on x before and y after weight gradients start."""
    m, p, send = rows.m, rows.p, rows.send
    zero = np.zeros_like(m)
    tops: list[FloatArray] = []
    for place, top in enumerate(stages):
        done = m - np.minimum(m, p - top.index)
        longest = zero
        for k, wait in enumerate(stages[: place + 1]):
            for end in stages[: k + 1]:
                longest = np.maximum(longest, _drain_split(rows, top, wait, end, done))
        tops.append(longest)
    # after[y]: from F(y, m−1) to the end
    after, fills = [zero] * len(stages), [zero] * len(stages)
    climb = fill = zero
    for place, stage in reversed(list(enumerate(stages))):
        climb = np.maximum(climb, stage.sum_f + stage.index * send + tops[place])
        after[place] = climb - stage.sum_f + stage.f - stage.index * send
        there_and_back = stage.sum_f + stage.sum_b + 2 * stage.index * send
        fill = np.maximum(fill, there_and_back + np.minimum(p - 1 - stage.index, m - 1) * stage.peak_f)
        fills[place] = fill - stage.sum_b + stage.b - stage.index * send
    best = zero
    for from_, x in enumerate(stages):
        slots = m - 1 - p + x.index
        single = fills[from_] + slots * (x.f + x.b) + np.maximum(m - p, 0) * x.w + after[from_]
        best = np.where(slots >= 0, np.maximum(best, single), best)
        for high in stages[-2:] if from_ < len(stages) - 2 else ():
            trips = np.minimum(np.floor(slots / (high.index - x.index + 1)), np.maximum(m - p, 0))
            looped = fills[from_] + loops(rows, x, high, slots) + trips * x.w + after[from_]
            best = np.where(slots >= 0, np.maximum(best, looped), best)
        for to, y in enumerate(stages):
            if to == from_:
                continue
            up = to > from_
            for early in (zero, np.maximum(x.index - 1, 0)) if up else (zero, y.index, x.index):
                late = m - 1 - p - early + (x.index if up else y.index)
                first = early * (x.f + x.b) + np.maximum(early - x.index + up, 0) * x.w
                second = late * (y.f + y.b) + np.clip(late + (not up), 0, np.maximum(m - p, 0)) * y.w
                step = y.sum_f - y.f - x.sum_f + x.f if up else x.sum_b - x.b - y.sum_b + y.b
                path = fills[from_] + first + step + np.abs(y.index - x.index) * send + second + after[to]
                best = np.where(late >= 0, np.maximum(best, path), best)
    return best


def _turning_split(rows: Profiles, stages: Sequence[Place]) -> FloatArray:
    """As `_turning`, (n,); the path ends on a stage at or below the one whose backwards it dwelt on."""
    m = rows.m
    best = np.zeros_like(m)
    room = [np.minimum(m, rows.p - stage.index) - 1 for stage in stages]
    for turn, forward, backward, end in _TURNS_SPLIT:
        k = stages[turn]
        for j in (room[turn], np.maximum(room[turn], room[forward])):
            done = j - room[turn]
            path = k.sum_f + j * stages[forward].f + k.index * rows.send
            path = path + _drain_split(rows, k, stages[backward], stages[end], done)
            best = np.where(done >= m - 1 - room[backward], np.maximum(best, path), best)
    return best


# as `_TURNS`, with the stage the path ends on
_TURNS_SPLIT = (
    *((6, 0, 0, 0), (6, 0, 1, 1), (5, 0, 0, 0), (6, 0, 6, 6), (6, 0, 4, 4), (6, 0, 2, 2), (2, 0, 0, 0), (5, 1, 0, 0)),
    *((3, 0, 0, 0), (6, 1, 1, 0), (6, 1, 1, 1), (5, 0, 1, 1), (0, 0, 0, 0), (5, 0, 1, 0), (6, 1, 6, 6), (4, 0, 4, 4)),
    *((3, 0, 1, 1), (3, 1, 1, 0), (3, 1, 1, 1), (4, 0, 1, 1), (5, 0, 2, 2), (4, 0, 3, 3), (4, 0, 1, 0)),
)
