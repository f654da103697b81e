"""Interleaved 1F1B as the longest of a few families of paths, for ends like the middle in forward and backward alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.schedules.chunks import Chunk, Chunks, chunks_of
from costmodels.schedules.groups import group_size
from costmodels.schedules.profiles import BoolArray, FloatArray, Profiles


@dataclass(frozen=True, slots=True)
class _Rank:
    """A rank of the interleaved schedule: its index, seconds of its ordinary chunks and of its end chunk.

    `early`: the end chunk is the first of a round of forwards and the last of a round of backwards, as on rank 0.
    """

    index: FloatArray
    f: FloatArray
    b: FloatArray
    end: Chunk
    early: bool

    def forwards(self, start: FloatArray | float, stop: FloatArray | float, rows: Profiles, g: FloatArray) -> FloatArray:
        """Seconds of the rank's forwards start, …, stop − 1 in its own order, (n,)."""
        return _run(start, stop, self.early, rows, g, self.f, self.end.f)

    def backwards(self, start: FloatArray | float, stop: FloatArray | float, rows: Profiles, g: FloatArray) -> FloatArray:
        """Seconds of the rank's backwards start, …, stop − 1 in its own order, (n,)."""
        return _run(start, stop, not self.early, rows, g, self.b, self.end.b)

    def reversed_in_time(self) -> _Rank:
        return _Rank(self.index, self.b, self.f, Chunk(self.end.b, self.end.f), self.early)


def _run(
    start: FloatArray | float,
    stop: FloatArray | float,
    early: bool,
    rows: Profiles,
    g: FloatArray,
    ordinary: FloatArray,
    end: FloatArray,
) -> FloatArray:
    """Seconds of a rank's ops start, …, stop − 1 of one kind, (n,): `ordinary` each, `end` those of its end chunk."""
    ends = _ends(stop, early, rows, g)
    if isinstance(start, np.ndarray) or start:
        ends = ends - _ends(start, early, rows, g)
    return np.asarray((stop - start) * ordinary + ends * (end - ordinary))


def _ends(count: FloatArray | float, early: bool, rows: Profiles, g: FloatArray) -> FloatArray:
    """How many of a rank's first `count` ops of one kind are its end chunk's: rounds of v chunks, g microbatches each."""
    whole = g * rows.v
    rounds = np.floor(count / whole)
    left = count - rounds * whole
    ends = np.minimum(left, g) if early else np.maximum(left - (whole - g), 0)
    return np.asarray(rounds * g + ends)


def interleaved_paths(rows: Profiles) -> FloatArray:
    """Longest path of the interleaved schedule (Narayanan 2021, fig. 4 bottom), (n,).

    Give the k-th forward of rank i slot k + i, and its k-th backward slot k + 2(p − 1) − i + (v − 1)g: every hop takes
    one slot and passes over the other half of it, so that nothing is gained by leaving the rank dwelt on, save in the
    warm-up and drain, where slots are half empty.
    """
    chunks = chunks_of(rows)
    m, p, v, send = rows.m, rows.p, rows.v, rows.send
    g = group_size(p.astype(np.int64), m.astype(np.int64)).astype(np.float64)
    deep = p > 2
    head, first, middle = chunks.head, chunks.first, chunks.middle
    inner = Chunk(np.where(deep, middle.f, first.f), np.where(deep, middle.b, first.b))
    inner_end = Chunk(np.where(deep, middle.f, head.f), np.where(deep, middle.b, head.b))
    second, before_last = np.where(deep, 1.0, 0.0), np.maximum(p - 2, 0)
    # the highest rank whose warm-up takes a whole group through the chunks below
    whole_group = np.clip(p - 1 - np.ceil((g - 1) / 2), second, before_last)
    ranks = (
        _Rank(np.zeros_like(p), first.f, first.b, head, True),
        *(_Rank(index, inner.f, inner.b, inner_end, True) for index in (second, whole_group, before_last)),
        _Rank(p - 1, chunks.last.f, chunks.last.b, chunks.tail, False),
    )
    mirrored, mirrored_ranks = chunks.reversed_in_time(), [rank.reversed_in_time() for rank in ranks]
    fills, climbs = _warm_up(rows, chunks, ranks, g)
    drains, falls = _warm_up(rows, mirrored, mirrored_ranks, g)
    best = np.zeros_like(m)
    for rank, fill, drain, climb, fall in zip(ranks, fills, drains, climbs, falls, strict=True):
        warm = 2 * (p - 1 - rank.index) + (v - 1) * g
        rest = m * v - 1 - warm
        dwell = rank.forwards(warm + 1, m * v - 1, rows, g) + rank.backwards(1, rest, rows, g)
        # few microbatches are all warm-up to the low ranks: forwards, then backwards
        turned = np.maximum(fill - rank.b + fall, climb - rank.f + drain)
        turned = np.where(rank.index == p - 1, climb + fall, turned)
        best = np.maximum(best, np.where(rest > 0, fill + dwell + drain, turned))
        # the rank from end to end
        before = np.where(rank.index > 0, head.f + head.b + (rank.index - 1) * (chunks.mean.f + chunks.mean.b), 0.0)
        whole = m * ((v - 1) * (rank.f + rank.b) + rank.end.f + rank.end.b)
        best = np.maximum(best, before + whole + 2 * rank.index * send)
    leaving = _leaving(rows, chunks.mean, ranks, fills[0], drains, g)
    coming = _leaving(rows, mirrored.mean, mirrored_ranks, drains[0], fills, g)
    warm = 2 * (p - 1) + (v - 1) * g
    come, leave = m * v - 1 - coming.done, leaving.done + warm
    between = ranks[0].forwards(come, leave + 1, rows, g) + ranks[0].backwards(come - warm, leaving.done + 1, rows, g)
    both = np.where(leaving.wraps & coming.wraps & (come <= leave), coming.after + between + leaving.after, 0.0)
    return np.asarray(np.maximum.reduce([best, leaving.best, coming.best, both]))


@dataclass(frozen=True, slots=True)
class _Leaving:
    """Paths that leave rank 0 for rank p − 1: the longest, and if one `wraps` from B(0, done), the seconds `after` it; (n,)."""

    best: FloatArray
    after: FloatArray
    done: FloatArray
    wraps: BoolArray


def _leaving(
    rows: Profiles, mean: Chunk, ranks: Sequence[_Rank], fill: FloatArray, drains: Sequence[FloatArray], g: FloatArray
) -> _Leaving:
    """Paths that dwell on rank 0 up to the last forward of its end chunk, then on rank p − 1, or p − 2.

    The end chunks of both run in the same slots, but for one forward round of rank 0 before and one backward round
    after those of rank p − 1. They leave upwards, F(0, k) … F(p − 1, k), or from B(0, j) to B(p − 1, j + g); and may have
    come the same way, in the mirror, after rank p − 1's first round.
    """
    m, v, p, send = rows.m, rows.v, rows.p, rows.send
    zero, last, before_last = ranks[0], ranks[-1], ranks[-2]
    warm_last = (v - 1) * g
    warm = 2 * (p - 1) + warm_last

    def dwell_on(rank: _Rank, above: int, forward: FloatArray, backward: FloatArray, drain: FloatArray) -> FloatArray:
        ahead = rank.forwards(forward, m * v - 1, rows, g)
        return ahead + rank.backwards(backward, m * v - 1 - warm_last - 2 * above, rows, g) + drain

    leave = (np.floor(m / g) - 1) * g * v + g - 1
    dwell = fill + zero.forwards(warm + 1, leave + 1, rows, g)
    # upwards
    early = zero.forwards(0, leave + 1, rows, g)
    until = np.where(leave > warm, dwell + zero.backwards(1, np.maximum(leave - warm, 1), rows, g), early)
    hops = np.maximum(p - 2, 0) * mean.f + last.f + (p - 1) * send
    upwards = until + hops + dwell_on(last, 0, leave + 1, leave - warm_last, drains[-1])
    best = np.where(leave >= warm_last, upwards, 0.0)
    # by the backward's wrap, and perhaps one rank down
    there = leave - warm + g
    after = send + dwell_on(last, 0, there + warm_last + 1, there, drains[-1])
    lower = 2 * send + last.b + dwell_on(before_last, 1, there + warm_last + 3, there, drains[-2])
    after = np.where((p > 2) & (there <= m * v - 3 - warm_last), np.maximum(after, lower), after)
    wraps = (leave >= warm) & (there <= m * v - 1 - warm_last)
    until = dwell + zero.backwards(1, leave - warm + 1, rows, g)
    return _Leaving(np.where(wraps, np.maximum(best, until + after), best), after, leave - warm, wraps)


def _warm_up(
    rows: Profiles, chunks: Chunks, ranks: Sequence[_Rank], g: FloatArray
) -> tuple[list[FloatArray], list[FloatArray]]:
    """For each of `ranks` seconds of the longest path up to and with B(i, 0), and with its last warm-up forward, (n,)."""
    p, v, send = rows.p, rows.v, rows.send
    head, tail, mean, first, last = chunks.head, chunks.tail, chunks.mean, chunks.first, chunks.last
    inner = np.maximum(p - 2, 0)
    bottom, top_rank = ranks[0], ranks[-1]
    count = (v - 1) * g + 1
    climb_all = (p - 1) * send + inner * mean.f
    # to F(p − 1, (v − 1)g): one microbatch through all chunks, after the others of its group through the first chunk
    alone = head.f + tail.f + (v - 1) * (first.f + last.f) + v * inner * mean.f + (p * v - 1) * send
    one_pass = np.maximum(alone, (g - 1) * head.f + alone - inner * mean.f - last.f - p * send)
    # ... or dwelling on one rank, or on rank 0 for its first chunk
    top = np.maximum(one_pass, climb_all + bottom.forwards(0, count, rows, g) + tail.f)
    top = np.maximum(top, climb_all + head.f + top_rank.forwards(0, count, rows, g))
    top = np.maximum(top, climb_all + g * head.f + top_rank.forwards(g - 1, count, rows, g))
    top = np.maximum(top, np.where(p > 2, climb_all + head.f + count * ranks[1].f - mean.f + tail.f, 0.0))
    fills, climbs = [], []
    for rank in ranks:
        above = p - 1 - rank.index
        at_last, at_first = rank.index == p - 1, rank.index == 0
        # down from B(p − 1, 0) by the first backwards of the ranks between
        lowest = np.where(at_first, bottom.b, mean.b)
        fall = np.where(at_last, 0.0, np.maximum(above - 1, 0) * mean.b + lowest) + above * send + tail.b
        # by forwards alone: at the rank itself, at rank 0, or at rank 0 for its first chunk
        warm = np.minimum(2 * above + (v - 1) * g, rows.m * v - 1)
        between = np.where(at_first, 0.0, np.maximum(rank.index - 1, 0) * mean.f) + rank.index * send
        own = rank.forwards(0, warm + 1, rows, g)
        later = g * head.f + rank.forwards(g - 1, warm + 1, rows, g)
        low = bottom.forwards(0, warm + 1, rows, g) + rank.f
        # ... or of one microbatch through the chunks below, the first of its group or the last, then those left here
        back = tail.f + np.maximum(above - 1, 0) * mean.f + above * send
        through = one_pass - back + rank.forwards(count, warm + 1, rows, g)
        late = alone - back + (g - 1) * head.f + rank.forwards(v * g, warm + 1, rows, g)
        through = np.maximum(through, np.where(warm >= v * g - 1, late, 0.0))
        climb = np.where(at_first, own, np.maximum.reduce([head.f + own, later, low]) + between)
        climb = np.where(at_last, top, np.maximum(climb, through))
        climbs.append(climb)
        fills.append(np.maximum(top + fall, climb + np.where(at_last, tail.b, rank.b)))
    return fills, climbs
