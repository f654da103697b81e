"""The stages of a pipeline where a longest path may begin, turn or dwell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.schedules.profiles import FloatArray, Profiles


@dataclass(frozen=True, slots=True)
class Place:
    """A stage worth dwelling or turning on: its index, its own seconds, sums and peaks over the stages up to it."""

    index: FloatArray
    f: FloatArray
    b: FloatArray
    w: FloatArray
    sum_f: FloatArray
    sum_b: FloatArray
    peak_f: FloatArray
    peak_b: FloatArray


def places(rows: Profiles, turns: Sequence[FloatArray] = ()) -> list[Place]:
    """The stages where path families begin, turn or dwell, by index; the middle ones repeat the first where p ≤ 2.

    First, second, those of `turns` (ascending), last but one, last.
    """
    first, middle, mean, last, p = rows.first, rows.middle, rows.mean, rows.last, rows.p
    peak_f, peak_b = np.maximum(first.f, middle.f), np.maximum(first.b, middle.b)

    def inside(index: FloatArray) -> Place:
        index = np.minimum(np.maximum(index, np.minimum(p - 1, 1)), np.maximum(p - 2, 0))
        sum_f, sum_b = first.f + index * mean.f, first.b + index * mean.b
        return Place(index, middle.f, middle.b, middle.w, sum_f, sum_b, peak_f, peak_b)

    before_last = inside(p - 2)
    edge_f, edge_b = np.where(p > 1, last.f, 0.0), np.where(p > 1, last.b, 0.0)
    return [
        Place(np.zeros_like(p), first.f, first.b, first.w, first.f, first.b, first.f, first.b),
        inside(np.ones_like(p)),
        *(inside(index) for index in turns),
        before_last,
        Place(
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
