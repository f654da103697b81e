"""GPipe and 1F1B as the longest of a few families of paths.

The stages of one point differ at the ends only (embedding, head), so few paths can be the longest: each family is the length
of a path that exists, and the time is their maximum.

Slots. Give F(i, j), the forward of microbatch j on stage i, slot j + i, and B(i, j) slot j + p − 1: under 1F1B stage i
runs F then B in each slot, a path leaves a slot at the same stage or at its neighbour, and what a path costs is what
it visits in each of the m + p − 1 slots. Hence the three parts of the families: a fill to B(i, 0), whole slots of the
stage it dwells on, and a drain from F(i, m−1), which is the fill of the time-reversed schedule.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from costmodels.schedules.places import Place, places
from costmodels.schedules.profiles import FloatArray, Profiles


def gpipe(rows: Profiles) -> FloatArray:
    """A flow line forwards, then one backwards: Σf + (m−1) max f + Σb + (m−1) max b, and both ways' sends (n,)."""
    last = places(rows)[-1]
    return last.sum_f + last.sum_b + (rows.m - 1) * (last.peak_f + last.peak_b) + 2 * (rows.p - 1) * rows.send


def one_f_one_b(rows: Profiles) -> FloatArray:
    """Longest path of 1F1B (Narayanan 2021, fig. 4 top), (n,)."""
    best = _dwelling(rows, places(rows))
    few = rows.m <= rows.p
    if few.any():
        # with m < p only the stages from p − m + 1 on alternate
        short = rows.take(few)
        begin = short.p - short.m
        stages = places(short, turns=[begin, begin + 1])
        best[few] = np.maximum(best[few], np.maximum(_dwelling(short, stages), _turning(short, stages)))
    return best


def _dwelling(rows: Profiles, stages: Sequence[Place]) -> FloatArray:
    """Paths that fill, dwell on one stage for the slots in which it alternates, and drain, (n,).

    With w = p − i: fill to B(i, 0), m − 1 − w slots, drain from F(i, m−1). Filling climbs to some stage k ≥ i, spends the
    p − 1 − k slots left on the slowest forward it met, and falls to i. With sends, slots may go to loops between two
    stages i and k, which take k − i + 1 slots and 2(k − i) sends.
    """
    m, p, send = rows.m, rows.p, rows.send
    sends = bool(send.any())
    fill = drain = np.zeros_like(m)
    best = np.zeros_like(m)
    for place, low in reversed(list(enumerate(stages))):
        there_and_back = low.sum_f + low.sum_b + 2 * low.index * send
        waits = np.minimum(p - 1 - low.index, m - 1)
        fill = np.maximum(fill, there_and_back + waits * low.peak_f)
        drain = np.maximum(drain, there_and_back + waits * low.peak_b)
        slots = m - 1 - p + low.index
        ends = fill + drain - (low.sum_f - low.f + low.sum_b - low.b) - 2 * low.index * send
        dwell = slots * (low.f + low.b)
        if sends and place < len(stages) - 2:
            dwell = np.maximum.reduce([dwell, *(loops(rows, low, high, slots) for high in stages[-2:])])
        best = np.where(slots >= 0, np.maximum(best, ends + dwell), best)
    return best


def loops(rows: Profiles, low: Place, high: Place, slots: FloatArray) -> FloatArray:
    """Seconds of `slots` ≥ 0 slots spent on loops from stage `low` to `high` and back, the last loop cut short, (n,)."""
    length = high.index - low.index + 1
    whole = np.floor(slots / length)
    rest = slots - whole * length
    loop = high.sum_f + high.sum_b - low.sum_f - low.sum_b + low.f + low.b + 2 * (length - 1) * rows.send
    inner = rows.middle.f + rows.middle.b
    edge = np.maximum(low.f + low.b, high.f + high.b)
    short = np.maximum(edge + (rest - 1) * (inner + 2 * rows.send), rest * np.maximum(edge, inner * (length > 2)))
    return np.asarray(whole * loop + np.where(rest > 0, short, 0.0))


# (turn, forward dwell, backward dwell) as places in `places` of few microbatches, found by search over all triples
_TURNS = (
    *((5, 0, 0), (0, 0, 0), (1, 0, 0), (4, 0, 0), (5, 1, 1), (2, 0, 0), (4, 1, 1), (5, 0, 1), (5, 1, 0)),
    *((5, 1, 5), (5, 5, 1), (4, 4, 0), (4, 0, 4), (1, 1, 0), (1, 0, 1)),
)


def _turning(rows: Profiles, stages: Sequence[Place]) -> FloatArray:
    """Paths that dwell on forwards, turn at a stage k, and dwell on backwards: the longest where m ≤ p, (n,).

    After j forwards more at one stage the turn is from F(k, j) to B(k, j − w + 1) with w = min(m, p − k), which leaves
    m − 2 + w − j backwards more at another; a stage dwells on one kind for at most min(m, p − i) − 1.
    """
    best = np.zeros_like(rows.m)
    room = [np.minimum(rows.m, rows.p - stage.index) - 1 for stage in stages]
    for turn, forward, backward in _TURNS:
        k, at_forward, at_backward = stages[turn], stages[forward], stages[backward]
        spare = rows.m - 1 + room[turn]
        most, least = room[forward], np.maximum(room[turn], spare - room[backward])
        most = np.minimum(most, spare)
        path = k.sum_f + k.sum_b + 2 * k.index * rows.send
        for j in (least, most):
            dwell = j * at_forward.f + (spare - j) * at_backward.b
            best = np.where(least <= most, np.maximum(best, path + dwell), best)
    return best
