"""Stages cut into chunks: what each of a rank's chunks takes under the interleaved schedule."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from costmodels.schedules.profiles import FloatArray, Profiles


@dataclass(frozen=True, slots=True)
class Chunk:
    """Seconds of one microbatch's forward and backward through a chunk."""

    f: FloatArray
    b: FloatArray


@dataclass(frozen=True, slots=True)
class Chunks:
    """Chunks of interleaved stages: the model's first and last, and the others of the first, a middle and the last rank."""

    head: Chunk
    tail: Chunk
    first: Chunk
    middle: Chunk
    mean: Chunk
    last: Chunk

    def reversed_in_time(self) -> Chunks:
        chunks = (self.head, self.tail, self.first, self.middle, self.mean, self.last)
        return Chunks(*(Chunk(chunk.b, chunk.f) for chunk in chunks))


def chunks_of(rows: Profiles) -> Chunks:
    """Ordinary chunks take a v-th of a middle stage, or what their rank leaves them; the model's end chunks the rest."""
    v = rows.v
    others = np.maximum(v - 1, 1)

    def split(first: FloatArray, middle: FloatArray, last: FloatArray) -> tuple[FloatArray, ...]:
        ordinary = np.where(rows.p > 2, middle, np.minimum(first, last)) / v
        here, there = np.minimum(ordinary, first / others), np.minimum(ordinary, last / others)
        return first - (v - 1) * here, last - (v - 1) * there, here, there

    forward = split(rows.first.f, rows.middle.f, rows.last.f)
    backward = split(rows.first.b, rows.middle.b, rows.last.b)
    head, tail, first, last = (Chunk(f, b) for f, b in zip(forward, backward, strict=True))
    middle, mean = Chunk(rows.middle.f / v, rows.middle.b / v), Chunk(rows.mean.f / v, rows.mean.b / v)
    return Chunks(head, tail, first, middle, mean, last)
