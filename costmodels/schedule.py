"""Time of a pipeline of microbatches for arrays of design points: GPipe, 1F1B, interleaved 1F1B, zero bubble, DualPipe.

A schedule is a fixed order of passes per rank, so its time is the longest path through a graph of passes: one schedule a file
in `costmodels.schedules`. Where few paths can be the longest, the time is the maximum of their lengths; where more can, the
recurrence is walked for all points of a shape together. Every time is within 1 % of the schedule run pass by pass
(`costmodels.schedule_simulation`, which the tests compare with), whether end stages are heavier or lighter than the middle.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike

from costmodels.schedules.chunks import Chunk, chunks_of
from costmodels.schedules.dualpipe import dualpipe
from costmodels.schedules.groups import group_size
from costmodels.schedules.interleaved import interleaved
from costmodels.schedules.one_f_one_b import gpipe, one_f_one_b
from costmodels.schedules.profiles import FloatArray, IntArray, Profiles, Seconds, profiles, slowest
from costmodels.schedules.zero_bubble import zero_bubble
from spaces.plan import Schedule

__all__ = ["PipelineTime", "Schedule", "StageTimes", "bound", "group_size", "in_flight", "pipeline_time"]

# rows evaluated together: the working set stays in the cache
_CHUNK = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """Seconds one microbatch takes on each device of a pipeline, all chunks of the device together; arrays of shape (n,).

    Middle stages are alike: `middle` is the slowest of them, the sums over all p stages are exact. `backward` is input
    gradient, weight gradient and recomputation; `weight` the share of it that is weight gradient. With one stage
    first, middle and last are the whole; with two, middle is not read. `send`: seconds of one hop to the next stage
    that the sender's next op does not wait for but the receiver's does.
    """

    forward_first: FloatArray
    forward_middle: FloatArray
    forward_last: FloatArray
    backward_first: FloatArray
    backward_middle: FloatArray
    backward_last: FloatArray
    weight_first: FloatArray
    weight_middle: FloatArray
    weight_last: FloatArray
    forward_sum: FloatArray
    backward_sum: FloatArray
    send: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineTime:
    """Seconds of all microbatches of a step, shape (n,): total = busy + bubble."""

    total: FloatArray
    busy: FloatArray
    """m · (forward + backward) of the slowest stage; under DualPipe a device halves its time between stages i and p−1−i."""
    bubble: FloatArray
    """The rest, ≥ 0: fill and drain, sends, and waiting for slower stages."""


def pipeline_time(
    times: StageTimes, pipeline: ArrayLike, virtual: ArrayLike, microbatches: ArrayLike, schedule: ArrayLike
) -> PipelineTime:
    """Seconds that the pipelines of n design points take, from the first forward to the last backward.

    pipeline p ≥ 1, virtual v ≥ 1 (read by the interleaved schedule alone), microbatches m ≥ 1 and schedule (codes of
    `Schedule`) are integers of shape (n,) or scalars. Equal stages and no sends give GPipe, 1F1B (m + p − 1)(f + b)
    (Narayanan 2021 §2.2), interleaved (m + (p − 1)/v)(f + b) (ibid.), ZB-H1 m(f + b) + (p − 1)(f + b − 2w) (Qi 2023,
    table 2). DualPipe's authors give m(f + b) + (p/2 − 1)(f + 2b − 3w) (DeepSeek-V3 2024, table 2).
    """
    n, columns, p, v, m, code = _columns(times, pipeline, virtual, microbatches, schedule)
    total, busy = np.empty(n), np.empty(n)
    for start in range(0, n, _CHUNK):
        part = slice(start, start + _CHUNK)
        rows = profiles([column[part] for column in columns], p[part], v[part], m[part])
        codes = np.where((code[part] == Schedule.INTERLEAVED) & (v[part] == 1), Schedule.ONE_F_ONE_B, code[part])
        busiest = slowest(rows, codes)
        longest = np.empty(len(codes))
        for known, seconds in _SCHEDULES.items():
            chosen = codes == known
            if chosen.all():
                longest = seconds(rows)
            elif chosen.any():
                longest[chosen] = seconds(rows.take(chosen))
        busy[part] = rows.m * busiest
        total[part] = np.where(rows.p == 1, busy[part], np.maximum(longest, busy[part]))
    return PipelineTime(total=total, busy=busy, bubble=total - busy)


def bound(
    times: StageTimes, pipeline: ArrayLike, virtual: ArrayLike, microbatches: ArrayLike, schedule: ArrayLike
) -> FloatArray:
    """Seconds that no run of the schedule falls below, shape (n,); arguments as for `pipeline_time`.

    The largest over stages of: what must run before its first forward, its m(f + b), what must run after its last op.
    DualPipe feeds both ends, so only its busy time is sure.
    """
    n, columns, p, v, m, code = _columns(times, pipeline, virtual, microbatches, schedule)
    if not n:
        return np.empty(0)
    rows = profiles(columns, p, v, m)
    zero, chunked = code == Schedule.ZERO_BUBBLE, (code == Schedule.INTERLEAVED) & (v > 1)
    chunks = chunks_of(rows)

    def pass_through(stage: Seconds, chunk: Chunk) -> FloatArray:
        # ZB-H1's weight gradients fill its drain, so that only the forwards before a stage are sure to add
        backward = np.where(chunked, chunk.b, stage.b) + rows.send
        return np.asarray(np.where(chunked, chunk.f, stage.f) + rows.send + np.where(zero, 0.0, backward))

    to_middle = pass_through(rows.first, chunks.head)
    to_last = to_middle + np.maximum(rows.p - 2, 0) * pass_through(rows.mean, chunks.mean)
    first, middle, last = (rows.m * (stage.f + stage.b) for stage in (rows.first, rows.middle, rows.last))
    best = np.maximum(first, np.where(rows.p > 2, middle + to_middle, 0.0))
    best = np.maximum(best, np.where(rows.p > 1, last + to_last, 0.0))
    return np.asarray(np.where(code == Schedule.DUALPIPE, rows.m * slowest(rows, code), best))


def in_flight(
    schedule: ArrayLike, pipeline: ArrayLike, virtual: ArrayLike, microbatches: ArrayLike, stage_index: ArrayLike
) -> IntArray:
    """Microbatch-chunks whose activations a stage holds at its peak; integers that broadcast together.

    A chunk is 1/v of the stage's layers. GPipe m·v; 1F1B min(m, p − i); interleaved min(m·v, 2(p − i − 1) + (v − 1)g + 1)
    with g = `group_size` (Narayanan 2021 §2.2, Korthikanti 2022 §4.2.3); ZB-H1 min(m, p) on every stage: p − i of them whole, i
    of them only what their weight gradients need (Qi 2023, table 1); DualPipe p + 1 (DeepSeek-V3 2024, table 2).
    """
    code, p, v, m, i = (np.asarray(x, dtype=np.int64) for x in (schedule, pipeline, virtual, microbatches, stage_index))
    chunks = np.where((code == Schedule.INTERLEAVED) | (code == Schedule.GPIPE), v, 1)
    plain = np.minimum(m, p - i)
    warm = 2 * (p - i - 1) + (v - 1) * group_size(p, m) + 1
    held = np.select(
        [code == Schedule.GPIPE, code == Schedule.INTERLEAVED, code == Schedule.ZERO_BUBBLE, code == Schedule.DUALPIPE],
        [m * chunks, np.where(v > 1, np.minimum(m * v, warm), plain), np.minimum(m, p), np.where(p > 1, p + 1, 1)],
        plain,
    )
    return np.asarray(held, dtype=np.int64)


def _columns(
    times: StageTimes, pipeline: ArrayLike, virtual: ArrayLike, microbatches: ArrayLike, schedule: ArrayLike
) -> tuple[int, list[FloatArray], IntArray, IntArray, IntArray, IntArray]:
    """The arguments as contiguous arrays of one length n: n, the times in the order of their fields, p, v, m, codes."""
    seconds = [np.asarray(getattr(times, field.name), dtype=np.float64) for field in fields(StageTimes)]
    counts = [np.asarray(x, dtype=np.int64) for x in (pipeline, virtual, microbatches, schedule)]
    (n,) = np.broadcast_shapes((1,), *(x.shape for x in (*seconds, *counts)))
    columns = [np.broadcast_to(x, (n,)) for x in seconds]
    p, v, m, code = (np.broadcast_to(x, (n,)) for x in counts)
    return n, columns, p, v, m, code


_SCHEDULES: dict[Schedule, Callable[[Profiles], FloatArray]] = {
    Schedule.GPIPE: gpipe,
    Schedule.ONE_F_ONE_B: one_f_one_b,
    Schedule.INTERLEAVED: interleaved,
    Schedule.ZERO_BUBBLE: zero_bubble,
    Schedule.DUALPIPE: dualpipe,
}
