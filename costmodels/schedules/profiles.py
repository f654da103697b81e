"""What the schedules are timed on: seconds of the first, a middle and the last stage, for arrays of design points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from spaces.plan import Schedule

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
BoolArray: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Seconds:
    """One kind of stage: seconds of a forward, a backward and the weight gradient within it."""

    f: FloatArray
    b: FloatArray
    w: FloatArray


@dataclass(frozen=True, slots=True)
class Profiles:
    """The rows of one schedule, clean: `middle` is a legal stage for every p, `mean` its mean over the middle stages."""

    p: FloatArray
    v: FloatArray
    m: FloatArray
    send: FloatArray
    first: Seconds
    middle: Seconds
    mean: Seconds
    last: Seconds

    def take(self, rows: BoolArray) -> Profiles:
        def part(end: Seconds) -> Seconds:
            return Seconds(end.f[rows], end.b[rows], end.w[rows])

        ends = (part(end) for end in (self.first, self.middle, self.mean, self.last))
        return Profiles(self.p[rows], self.v[rows], self.m[rows], self.send[rows], *ends)


def profiles(columns: Sequence[FloatArray], p: IntArray, v: IntArray, m: IntArray) -> Profiles:
    """Columns in the order of `StageTimes`' fields, with a middle stage made up where there is none (p ≤ 2)."""
    f0, fm, fl, b0, bm, bl, w0, wm, wl, sum_f, sum_b, send = columns
    deep = p > 2
    inner = np.maximum(p - 2, 1)
    middle = Seconds(np.where(deep, fm, f0), np.where(deep, bm, b0), np.where(deep, wm, w0))
    mean = Seconds(np.where(deep, (sum_f - f0 - fl) / inner, f0), np.where(deep, (sum_b - b0 - bl) / inner, b0), middle.w)
    width, chunks, count = (x.astype(np.float64) for x in (p, v, m))
    return Profiles(width, chunks, count, send, Seconds(f0, b0, w0), middle, mean, Seconds(fl, bl, wl))


def unlike(rows: Profiles) -> FloatArray:
    """How far an end is heavier one way than the other, relative to the middle: the larger of both ends, 0 ≤ u < 1, (n,)."""

    def of(end: Seconds) -> FloatArray:
        forward, backward = end.f * rows.middle.b, end.b * rows.middle.f
        return np.asarray(1.0 - np.minimum(forward, backward) / np.maximum(np.maximum(forward, backward), 1e-300))

    return np.asarray(np.maximum(of(rows.first), of(rows.last)))


def stage_seconds(rows: Profiles) -> FloatArray:
    """Seconds (3, 3, n) of forward, input gradient and weight gradient on the first, a middle and the last stage."""
    stages = (rows.first, rows.middle, rows.last)
    return np.stack([[s.f for s in stages], [s.b - s.w for s in stages], [s.w for s in stages]])


def slowest(rows: Profiles, code: IntArray) -> FloatArray:
    """Seconds a microbatch keeps the busiest device, (n,)."""
    first, middle, last = (stage.f + stage.b for stage in (rows.first, rows.middle, rows.last))
    ends = np.where(code == Schedule.DUALPIPE, (first + last) / 2, np.maximum(first, last))
    return np.asarray(np.maximum(ends, np.where(rows.p > 2, middle, 0.0)))
