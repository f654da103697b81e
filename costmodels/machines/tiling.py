"""Traffic of a matrix product through a buffer: the best tile that fits, by what stays in the buffer.

An (m, k) · (k, n) product is cut so that a tile of one operand or of the result stays in a buffer of `size` bytes while slabs
of the others pass, double buffered. Given how often one dimension is cut, the other's largest tile follows in closed form, so
the best tiling is found by a scan of cut counts, for all products at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spaces.columns import FloatArray, Value

ACCUMULATOR = 4.0
"""Bytes of a partial result."""
SLAB = 16
"""Elements of the streamed dimension that are in the buffer at a time."""
CUTS: NDArray[np.float64] = np.concatenate([np.arange(1.0, 17.0), np.round(np.geomspace(20.0, 4096.0, 22))])
"""How often a dimension is cut: every count to 16, then within 15 % of the best."""


@dataclass(frozen=True, slots=True, eq=False)
class Tiling:
    """The best tile of each product: bytes moved into and out of the buffer in all, and the tile's sides, shape (n,)."""

    traffic: FloatArray
    first: FloatArray
    second: FloatArray


def output_tiling(m: Value, n: Value, k: Value, size: Value, element: Value = 2.0, output: Value = 2.0) -> Tiling:
    """Results stay: both operands pass once for every tile of the other dimension, results leave once.

    m·k·⌈n/b⌉·e + k·n·⌈m/a⌉·e + m·n·o bytes, with 4·a·b + 2·slab·(a + b)·e within the buffer.
    """
    m, n, k, size, element, output = _arrays(m, n, k, size, element, output)
    a = np.ceil(m / CUTS)
    slab = 2.0 * np.minimum(SLAB, k) * element
    b = np.clip(np.floor((size - slab * a) / (ACCUMULATOR * a + slab)), 0.0, n)
    moved = element * k * (m * np.ceil(n / np.maximum(b, 1.0)) + n * np.ceil(m / a)) + output * m * n
    return _best(np.where(b >= 1.0, moved, np.inf), a, b)


def operand_tiling(m: Value, n: Value, k: Value, size: Value, element: Value = 2.0, output: Value = 2.0) -> Tiling:
    """The (k, n) operand stays: it enters once, the other passes for every tile of n, partial results for every tile of k.

    k·n·e + m·k·⌈n/b⌉·e + m·n·(o + 8·(⌈k/a⌉ − 1)) bytes, with a·b·e + 2·slab·(a·e + 4·b) within the buffer.
    """
    m, n, k, size, element, output = _arrays(m, n, k, size, element, output)
    a = np.ceil(k / CUTS)
    slab = 2.0 * np.minimum(SLAB, m)
    b = np.clip(np.floor((size - slab * a * element) / (a * element + slab * ACCUMULATOR)), 0.0, n)
    partial = output + 2.0 * ACCUMULATOR * (np.ceil(k / a) - 1.0)
    moved = element * (k * n + m * k * np.ceil(n / np.maximum(b, 1.0))) + m * n * partial
    return _best(np.where(b >= 1.0, moved, np.inf), a, b)


def buffer_traffic(
    m: Value, n: Value, k: Value, size: Value, element: Value = 2.0, output: Value = 2.0, stationary: str = "best"
) -> FloatArray:
    """Bytes between a buffer of `size` bytes and the level beyond, shape (n,); the least over what may stay, or the one given.

    Never below what must move once. A buffer too small for one element of each moves every operand for every multiply-add.
    """
    kinds = {
        "output": lambda: output_tiling(m, n, k, size, element, output).traffic,
        "weight": lambda: operand_tiling(m, n, k, size, element, output).traffic,
        "input": lambda: operand_tiling(n, m, k, size, element, output).traffic,
    }
    found = [kinds[name]() for name in (kinds if stationary == "best" else (stationary,))]
    m_, n_, k_, _, e, o = (array[..., 0] for array in _arrays(m, n, k, size, element, output))
    return np.minimum(np.minimum.reduce(found), m_ * n_ * (2.0 * e * k_ + o))


def _arrays(*values: Value) -> tuple[FloatArray, ...]:
    """All as float64 of one shape, with a last axis for the cuts."""
    return tuple(array[..., None] for array in np.broadcast_arrays(*(np.asarray(value, np.float64) for value in values)))


def _best(moved: FloatArray, a: FloatArray, b: FloatArray) -> Tiling:
    place = np.argmin(moved, axis=-1)[..., None]
    return Tiling(*(np.take_along_axis(np.broadcast_to(x, moved.shape), place, axis=-1)[..., 0] for x in (moved, a, b)))
