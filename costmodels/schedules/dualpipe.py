"""DualPipe (DeepSeek-V3 2024): microbatches enter at both ends, every device holds a stage and its mirror."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from costmodels.schedules.orders import Op, dualpipe_order, mirrored_input_of
from costmodels.schedules.profiles import FloatArray, Profiles, stage_seconds
from costmodels.schedules.recurrence import Walk, longest_each, walk


def dualpipe(rows: Profiles) -> FloatArray:
    """Seconds of DualPipe, (n,): the recurrence where it can run, even p and m ≥ 2p; else its authors' formula."""
    best = dualpipe_formula(rows)
    runs = (rows.p % 2 == 0) & (rows.m % 2 == 0) & (rows.m >= 2 * rows.p)
    if runs.any():
        some = rows.take(runs)
        both, inner = some.first.f + some.first.b + some.last.f + some.last.b, some.middle.f + some.middle.b
        slowest = np.maximum(both / 2, np.where(some.p > 2, inner, 0.0))
        best[runs] = longest_each(some, stage_seconds(some), _walk, np.full(len(some.p), 2), slowest)
    return best


@lru_cache(maxsize=128)
def _walk(p: int, _: int, m: int, __: int) -> Walk:
    """The passes of the first half of the ranks: the other half does the same with the directions exchanged."""

    def place(stage: int) -> int:
        return 0 if stage == 0 else 2 if stage == p - 1 else 1

    def input_of(rank: int, op: Op) -> tuple[int, Op] | None:
        source = mirrored_input_of(rank, op, p)
        if source is None or source[0] < p // 2:
            return source
        return p - 1 - source[0], Op(source[1].kind, source[1].microbatch, 1 - source[1].chunk)

    half = range(p // 2)
    return walk([dualpipe_order(rank, p, m) for rank in half], [[place(rank), place(p - 1 - rank)] for rank in half], input_of)


def dualpipe_formula(rows: Profiles) -> FloatArray:
    """Busy time and the bubble (p/2 − 1)(F&B + B − 3W) with F&B = f + b (DeepSeek-V3 2024, table 2), (n,).

    Each device holds stages i and p − 1 − i and takes half of the microbatches through each.
    """
    first, middle, last = rows.first, rows.middle, rows.last
    f, b, w = (first.f + last.f) / 2, (first.b + last.b) / 2, (first.w + last.w) / 2
    idle = np.maximum(f + 2 * b - 3 * w, middle.f + 2 * middle.b - 3 * middle.w)
    busy = rows.m * np.maximum(f + b, middle.f + middle.b)
    return np.asarray(busy + np.maximum(rows.p / 2 - 1, 0) * np.maximum(idle + 2 * rows.send, 0))
