"""Time of a pipeline of microbatches for arrays of design points: GPipe, 1F1B, interleaved 1F1B, zero bubble, DualPipe.

A schedule is a fixed order of ops per rank, so its time is the longest path through a graph of ops. The stages of one
point differ at the ends only (embedding, head), so few paths can be the longest: each family below is the length of a
path that exists, and the time is their maximum. `costmodels.schedule_simulation` walks the graph itself; tests compare.

Slots. Give F(i, j), the forward of microbatch j on stage i, slot j + i, and B(i, j) slot j + p − 1: under 1F1B stage i
runs F then B in each slot, a path leaves a slot at the same stage or at its neighbour, and what a path costs is what
it visits in each of the m + p − 1 slots. Hence the three parts of the families: a fill to B(i, 0), whole slots of the
stage it dwells on, and a drain from F(i, m−1), which is the fill of the time-reversed schedule.

Every figure is the length of a path that exists, so none is above the exact time. GPipe, and 1F1B without sends, are
exact; else the figures fall short by less than 1 % (1F1B, interleaved) or 2 % (zero bubble) for ends that differ from the
middle in forward and backward alike. Interleaved misses up to 4 % where m is no multiple of p, and more where an end is
several times heavier one way and lighter the other. DualPipe has its authors' formula only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spaces.plan import Schedule

__all__ = ["PipelineTime", "Schedule", "StageTimes", "bound", "group_size", "in_flight", "pipeline_time"]

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
BoolArray: TypeAlias = NDArray[np.bool_]

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


@dataclass(frozen=True, slots=True)
class _End:
    """One kind of stage: seconds of a forward, a backward and the weight gradient within it."""

    f: FloatArray
    b: FloatArray
    w: FloatArray


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of one schedule, clean: `middle` is a legal stage for every p, `mean` its mean over the middle stages."""

    p: FloatArray
    v: FloatArray
    m: FloatArray
    send: FloatArray
    first: _End
    middle: _End
    mean: _End
    last: _End

    def take(self, rows: BoolArray) -> "_Rows":
        def part(end: _End) -> _End:
            return _End(end.f[rows], end.b[rows], end.w[rows])

        ends = (part(end) for end in (self.first, self.middle, self.mean, self.last))
        return _Rows(self.p[rows], self.v[rows], self.m[rows], self.send[rows], *ends)


@dataclass(frozen=True, slots=True)
class _Stage:
    """A stage worth dwelling or turning on: its index, its own seconds, sums and peaks over the stages up to it."""

    index: FloatArray
    f: FloatArray
    b: FloatArray
    w: FloatArray
    sum_f: FloatArray
    sum_b: FloatArray
    peak_f: FloatArray
    peak_b: FloatArray


def pipeline_time(
    times: StageTimes, pipeline: ArrayLike, virtual: ArrayLike, microbatches: ArrayLike, schedule: ArrayLike
) -> PipelineTime:
    """Seconds that the pipelines of n design points take, from the first forward to the last backward.

    pipeline p ≥ 1, virtual v ≥ 1 (read by the interleaved schedule alone), microbatches m ≥ 1 and schedule (codes of
    `Schedule`) are integers of shape (n,) or scalars. Equal stages and no sends give GPipe, 1F1B (m + p − 1)(f + b)
    (Narayanan 2021 §2.2), interleaved (m + (p − 1)/v)(f + b) (ibid.), ZB-H1 m(f + b) + (p − 1)(f + b − 2w) (Qi 2023,
    table 2), DualPipe m(f + b) + (p/2 − 1)(f + 2b − 3w) (DeepSeek-V3 2024, table 2).
    """
    n, columns, p, v, m, code = _columns(times, pipeline, virtual, microbatches, schedule)
    total, busy = np.empty(n), np.empty(n)
    for start in range(0, n, _CHUNK):
        part = slice(start, start + _CHUNK)
        rows = _rows([column[part] for column in columns], p[part], v[part], m[part])
        codes = np.where((code[part] == Schedule.INTERLEAVED) & (v[part] == 1), Schedule.ONE_F_ONE_B, code[part])
        slowest = _slowest(rows, codes)
        longest = np.empty(len(codes))
        for known, seconds in _SCHEDULES.items():
            chosen = codes == known
            if chosen.all():
                longest = seconds(rows)
            elif chosen.any():
                longest[chosen] = seconds(rows.take(chosen))
        busy[part] = rows.m * slowest
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
    rows = _rows(columns, p, v, m)
    zero, chunked = code == Schedule.ZERO_BUBBLE, (code == Schedule.INTERLEAVED) & (v > 1)
    chunks = _chunks(rows)

    def pass_through(stage: _End, chunk: _Chunk) -> FloatArray:
        # ZB-H1's weight gradients fill its drain, so that only the forwards before a stage are sure to add
        backward = np.where(chunked, chunk.b, stage.b) + rows.send
        return np.asarray(np.where(chunked, chunk.f, stage.f) + rows.send + np.where(zero, 0.0, backward))

    to_middle = pass_through(rows.first, chunks.head)
    to_last = to_middle + np.maximum(rows.p - 2, 0) * pass_through(rows.mean, chunks.mean)
    first, middle, last = (rows.m * (stage.f + stage.b) for stage in (rows.first, rows.middle, rows.last))
    best = np.maximum(first, np.where(rows.p > 2, middle + to_middle, 0.0))
    best = np.maximum(best, np.where(rows.p > 1, last + to_last, 0.0))
    return np.asarray(np.where(code == Schedule.DUALPIPE, rows.m * _slowest(rows, code), best))


def in_flight(
    schedule: ArrayLike, pipeline: ArrayLike, virtual: ArrayLike, microbatches: ArrayLike, stage_index: ArrayLike
) -> IntArray:
    """Microbatch-chunks whose activations a stage holds at its peak; integers that broadcast together.

    A chunk is 1/v of the stage's layers. GPipe m·v; 1F1B min(m, p − i); interleaved min(m·v, 2(p − i − 1) + (v − 1)g + 1)
    with g = `group_size` (Narayanan 2021 §2.2, Korthikanti 2022 §4.2.3); ZB-H1 min(m, p) on every stage: p − i of them whole, i
    of them only what their weight gradients need (Qi 2023, table 1); DualPipe p + 1 (DeepSeek-V3 2024, table 2).
    """
    code, p, v, m, i = np.broadcast_arrays(
        *(np.asarray(x, dtype=np.int64) for x in (schedule, pipeline, virtual, microbatches, stage_index))
    )
    chunks = np.where((code == Schedule.INTERLEAVED) | (code == Schedule.GPIPE), v, 1)
    plain = np.minimum(m, p - i)
    warm = 2 * (p - i - 1) + (v - 1) * group_size(p, m) + 1
    held = np.select(
        [code == Schedule.GPIPE, code == Schedule.INTERLEAVED, code == Schedule.ZERO_BUBBLE, code == Schedule.DUALPIPE],
        [m * chunks, np.where(v > 1, np.minimum(m * v, warm), plain), np.minimum(m, p), np.where(p > 1, p + 1, 1)],
        plain,
    )
    return np.asarray(held, dtype=np.int64)


def group_size(pipeline: ArrayLike, microbatches: ArrayLike) -> IntArray:
    """Microbatches the interleaved schedule takes through a chunk in a row: p where that divides m.

    Else the smallest divisor of m that is at least p: Megatron-core's `microbatch_group_size_per_vp_stage` must not leave a
    last group smaller than p, which the ranks would wait for. All m where m < p (Megatron-core refuses that).
    """
    p, m = np.broadcast_arrays(np.asarray(pipeline, dtype=np.int64), np.asarray(microbatches, dtype=np.int64))
    size = np.where(m % p == 0, p, m)
    odd = np.flatnonzero((m % p != 0) & (m > p))
    if odd.size:
        pairs, inverse = np.unique(np.stack([p.ravel()[odd], m.ravel()[odd]]), axis=1, return_inverse=True)
        legal = [next(g for g in range(a, b + 1) if b % g == 0) for a, b in pairs.T.tolist()]
        size.ravel()[odd] = np.asarray(legal, dtype=np.int64)[inverse.ravel()]
    return np.asarray(size, dtype=np.int64)


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


def _rows(columns: Sequence[FloatArray], p: IntArray, v: IntArray, m: IntArray) -> _Rows:
    """Columns in the order of `StageTimes`' fields, with a middle stage made up where there is none (p ≤ 2)."""
    f0, fm, fl, b0, bm, bl, w0, wm, wl, sum_f, sum_b, send = columns
    deep = p > 2
    inner = np.maximum(p - 2, 1)
    middle = _End(np.where(deep, fm, f0), np.where(deep, bm, b0), np.where(deep, wm, w0))
    mean = _End(np.where(deep, (sum_f - f0 - fl) / inner, f0), np.where(deep, (sum_b - b0 - bl) / inner, b0), middle.w)
    width, chunks, count = (x.astype(np.float64) for x in (p, v, m))
    return _Rows(width, chunks, count, send, _End(f0, b0, w0), middle, mean, _End(fl, bl, wl))


def _slowest(rows: _Rows, code: IntArray) -> FloatArray:
    """Seconds a microbatch keeps the busiest device, (n,)."""
    first, middle, last = (stage.f + stage.b for stage in (rows.first, rows.middle, rows.last))
    ends = np.where(code == Schedule.DUALPIPE, (first + last) / 2, np.maximum(first, last))
    return np.asarray(np.maximum(ends, np.where(rows.p > 2, middle, 0.0)))


def _gpipe(rows: _Rows) -> FloatArray:
    """A flow line forwards, then one backwards: Σf + (m−1) max f + Σb + (m−1) max b, and both ways' sends (n,)."""
    last = _stages(rows)[-1]
    return last.sum_f + last.sum_b + (rows.m - 1) * (last.peak_f + last.peak_b) + 2 * (rows.p - 1) * rows.send


def _one_f_one_b(rows: _Rows) -> FloatArray:
    """Longest path of 1F1B (Narayanan 2021, fig. 4 top), (n,)."""
    best = _dwelling(rows, _stages(rows))
    few = rows.m <= rows.p
    if few.any():
        # with m < p only the stages from p − m + 1 on alternate
        short = rows.take(few)
        begin = short.p - short.m
        stages = _stages(short, turns=[begin, begin + 1])
        best[few] = np.maximum(best[few], np.maximum(_dwelling(short, stages), _turning(short, stages)))
    return best


def _stages(rows: _Rows, turns: Sequence[FloatArray] = ()) -> list[_Stage]:
    """The stages where path families begin, turn or dwell, by index; the middle ones repeat the first where p ≤ 2.

    First, second, those of `turns` (ascending), last but one, last.
    """
    first, middle, mean, last, p = rows.first, rows.middle, rows.mean, rows.last, rows.p
    peak_f, peak_b = np.maximum(first.f, middle.f), np.maximum(first.b, middle.b)

    def inside(index: FloatArray) -> _Stage:
        index = np.minimum(np.maximum(index, np.minimum(p - 1, 1)), np.maximum(p - 2, 0))
        sum_f, sum_b = first.f + index * mean.f, first.b + index * mean.b
        return _Stage(index, middle.f, middle.b, middle.w, sum_f, sum_b, peak_f, peak_b)

    before_last = inside(p - 2)
    edge_f, edge_b = np.where(p > 1, last.f, 0.0), np.where(p > 1, last.b, 0.0)
    return [
        _Stage(np.zeros_like(p), first.f, first.b, first.w, first.f, first.b, first.f, first.b),
        inside(np.ones_like(p)),
        *(inside(index) for index in turns),
        before_last,
        _Stage(
            p - 1,
            last.f,
            last.b,
            last.w,
            before_last.sum_f + edge_f,
            before_last.sum_b + edge_b,
            np.maximum(peak_f, last.f),
            np.maximum(peak_b, last.b),
        ),
    ]


def _dwelling(rows: _Rows, stages: Sequence[_Stage]) -> FloatArray:
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
            dwell = np.maximum.reduce([dwell, *(_loops(rows, low, high, slots) for high in stages[-2:])])
        best = np.where(slots >= 0, np.maximum(best, ends + dwell), best)
    return best


def _loops(rows: _Rows, low: _Stage, high: _Stage, slots: FloatArray) -> FloatArray:
    """Seconds of `slots` ≥ 0 slots spent on loops from stage `low` to `high` and back, the last loop cut short, (n,)."""
    length = high.index - low.index + 1
    whole = np.floor(slots / length)
    rest = slots - whole * length
    loop = high.sum_f + high.sum_b - low.sum_f - low.sum_b + low.f + low.b + 2 * (length - 1) * rows.send
    inner = rows.middle.f + rows.middle.b
    edge = np.maximum(low.f + low.b, high.f + high.b)
    short = np.maximum(edge + (rest - 1) * (inner + 2 * rows.send), rest * np.maximum(edge, inner * (length > 2)))
    return np.asarray(whole * loop + np.where(rest > 0, short, 0.0))


# (turn, forward dwell, backward dwell) as places in `_stages` of few microbatches, found by search over all triples
_TURNS = (
    *((5, 0, 0), (0, 0, 0), (1, 0, 0), (4, 0, 0), (5, 1, 1), (2, 0, 0), (4, 1, 1), (5, 0, 1), (5, 1, 0)),
    *((5, 1, 5), (5, 5, 1), (4, 4, 0), (4, 0, 4), (1, 1, 0), (1, 0, 1)),
)


def _turning(rows: _Rows, stages: Sequence[_Stage]) -> FloatArray:
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


def _zero_bubble(rows: _Rows) -> FloatArray:
    """Longest path of ZB-H1 (Qi 2023, fig. 3), (n,); `_End.b` and `_Stage.b` are input gradients alone in here.

    Stage i holds back i weight gradients: they run beside its backwards from slot p − 1 + i on, the last ones at the end.
    """
    ends = (_End(end.f, end.b - end.w, end.w) for end in (rows.first, rows.middle, rows.mean, rows.last))
    rows = _Rows(rows.p, rows.v, rows.m, rows.send, *ends)
    best = _dwelling_split(rows, _stages(rows))
    few = rows.m <= rows.p
    if few.any():
        short = rows.take(few)
        begin, held = short.p - short.m, short.m - 1
        low, high = np.minimum(begin, held), np.maximum(begin + 1, held)
        stages = _stages(short, turns=[low, 2 * begin + 1 + held - low - high, high])
        longest = np.maximum(_dwelling_split(short, stages), _turning_split(short, stages))
        best[few] = np.maximum(best[few], longest)
    return best


def _drain_split(rows: _Rows, top: _Stage, wait: _Stage, end: _Stage, done: FloatArray) -> FloatArray:
    """From B(top, done) to the end of stage `end`, the backwards left spent on stage `wait`, end ≤ wait ≤ top, (n,)."""
    m = rows.m
    falls = top.sum_b - end.sum_b + end.b + (top.index - end.index) * rows.send
    waits = (m - 1 - done) * wait.b + np.maximum(m - 1 - np.maximum(done, wait.index), 0) * wait.w
    return np.asarray(falls + waits + np.minimum(m, end.index + 1) * end.w)


def _dwelling_split(rows: _Rows, stages: Sequence[_Stage]) -> FloatArray:
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
            loops = fills[from_] + _loops(rows, x, high, slots) + trips * x.w + after[from_]
            best = np.where(slots >= 0, np.maximum(best, loops), best)
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


def _turning_split(rows: _Rows, stages: Sequence[_Stage]) -> FloatArray:
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


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Seconds of one microbatch's forward and backward through a chunk."""

    f: FloatArray
    b: FloatArray


@dataclass(frozen=True, slots=True)
class _Chunks:
    """Chunks of interleaved stages: the model's first and last, and the others of the first, a middle and the last rank."""

    head: _Chunk
    tail: _Chunk
    first: _Chunk
    middle: _Chunk
    mean: _Chunk
    last: _Chunk

    def reversed_in_time(self) -> "_Chunks":
        chunks = (self.head, self.tail, self.first, self.middle, self.mean, self.last)
        return _Chunks(*(_Chunk(chunk.b, chunk.f) for chunk in chunks))


def _chunks(rows: _Rows) -> _Chunks:
    """Ordinary chunks take a v-th of a middle stage, or what their rank leaves them; the model's end chunks the rest."""
    v = rows.v
    others = np.maximum(v - 1, 1)

    def split(first: FloatArray, middle: FloatArray, last: FloatArray) -> tuple[FloatArray, ...]:
        ordinary = np.where(rows.p > 2, middle, np.minimum(first, last)) / v
        here, there = np.minimum(ordinary, first / others), np.minimum(ordinary, last / others)
        return first - (v - 1) * here, last - (v - 1) * there, here, there

    forward = split(rows.first.f, rows.middle.f, rows.last.f)
    backward = split(rows.first.b, rows.middle.b, rows.last.b)
    head, tail, first, last = (_Chunk(f, b) for f, b in zip(forward, backward, strict=True))
    middle, mean = _Chunk(rows.middle.f / v, rows.middle.b / v), _Chunk(rows.mean.f / v, rows.mean.b / v)
    return _Chunks(head, tail, first, middle, mean, last)


@dataclass(frozen=True, slots=True)
class _Rank:
    """A rank of the interleaved schedule: its index, seconds of its ordinary chunks and of its end chunk.

    `early`: the end chunk is the first of a round of forwards and the last of a round of backwards, as on rank 0.
    """

    index: FloatArray
    f: FloatArray
    b: FloatArray
    end: _Chunk
    early: bool

    def forwards(self, start: FloatArray | float, stop: FloatArray | float, rows: _Rows, g: FloatArray) -> FloatArray:
        """Seconds of the rank's forwards start, …, stop − 1 in its own order, (n,)."""
        ends = _ends(stop, self.early, rows, g) - _ends(start, self.early, rows, g)
        return np.asarray((stop - start) * self.f + ends * (self.end.f - self.f))

    def backwards(self, start: FloatArray | float, stop: FloatArray | float, rows: _Rows, g: FloatArray) -> FloatArray:
        """Seconds of the rank's backwards start, …, stop − 1 in its own order, (n,)."""
        ends = _ends(stop, not self.early, rows, g) - _ends(start, not self.early, rows, g)
        return np.asarray((stop - start) * self.b + ends * (self.end.b - self.b))

    def reversed_in_time(self) -> "_Rank":
        return _Rank(self.index, self.b, self.f, _Chunk(self.end.b, self.end.f), self.early)


def _ends(count: FloatArray | float, early: bool, rows: _Rows, g: FloatArray) -> FloatArray:
    """How many of a rank's first `count` ops of one kind are its end chunk's: rounds of v chunks, g microbatches each."""
    rounds = np.floor(count / (g * rows.v))
    left = count - rounds * g * rows.v
    ends = np.minimum(left, g) if early else np.maximum(left - (rows.v - 1) * g, 0)
    return np.asarray(rounds * g + ends)


def _interleaved(rows: _Rows) -> FloatArray:
    """Longest path of the interleaved schedule (Narayanan 2021, fig. 4 bottom), (n,).

    Give the k-th forward of rank i slot k + i, and its k-th backward slot k + 2(p − 1) − i + (v − 1)g: every hop takes
    one slot and passes over the other half of it, so that nothing is gained by leaving the rank dwelt on, save in the
    warm-up and drain, where slots are half empty.
    """
    chunks = _chunks(rows)
    m, p, v, send = rows.m, rows.p, rows.v, rows.send
    g = group_size(p.astype(np.int64), m.astype(np.int64)).astype(np.float64)
    deep = p > 2
    head, first, middle = chunks.head, chunks.first, chunks.middle
    inner = _Chunk(np.where(deep, middle.f, first.f), np.where(deep, middle.b, first.b))
    inner_end = _Chunk(np.where(deep, middle.f, head.f), np.where(deep, middle.b, head.b))
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
    rows: _Rows, mean: _Chunk, ranks: Sequence[_Rank], fill: FloatArray, drains: Sequence[FloatArray], g: FloatArray
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


def _warm_up(rows: _Rows, chunks: _Chunks, ranks: Sequence[_Rank], g: FloatArray) -> tuple[list[FloatArray], list[FloatArray]]:
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


def _dualpipe(rows: _Rows) -> FloatArray:
    """Busy time and the bubble (p/2 − 1)(F&B + B − 3W) with F&B = f + b (DeepSeek-V3 2024, table 2), (n,).

    Each device holds stages i and p − 1 − i and takes half of the microbatches through each.
    """
    first, middle, last = rows.first, rows.middle, rows.last
    f, b, w = (first.f + last.f) / 2, (first.b + last.b) / 2, (first.w + last.w) / 2
    idle = np.maximum(f + 2 * b - 3 * w, middle.f + 2 * middle.b - 3 * middle.w)
    busy = rows.m * np.maximum(f + b, middle.f + middle.b)
    return np.asarray(busy + np.maximum(rows.p / 2 - 1, 0) * np.maximum(idle + 2 * rows.send, 0))


_SCHEDULES: dict[Schedule, Callable[[_Rows], FloatArray]] = {
    Schedule.GPIPE: _gpipe,
    Schedule.ONE_F_ONE_B: _one_f_one_b,
    Schedule.INTERLEAVED: _interleaved,
    Schedule.ZERO_BUBBLE: _zero_bubble,
    Schedule.DUALPIPE: _dualpipe,
}
