"""Cycles of a matrix product on one array of multiply-adders, by what stays in place.

An R x C array holds a tile of one operand (or of the result) while the other two stream through it; a product larger than the
array folds over it. Closed forms are those of a systolic array (SCALE-Sim, Samajdar et al. 2020, §III), and are tested
against a cycle-by-cycle walk. Everything broadcasts; dimensions are whole numbers.
"""

from __future__ import annotations

import numpy as np

from spaces.columns import FloatArray, Value

STATIONARY = ("output", "weight", "input")
"""What may stay in the array: results, the (k, n) operand, or the (m, k) operand."""


def folds(stationary: str, m: Value, n: Value, k: Value, rows: Value, columns: Value) -> tuple[FloatArray, FloatArray]:
    """(times the array is filled, cycles the streams of one filling last) of an (m, k) · (k, n) product.

    Raises ValueError for another word than those of STATIONARY.
    """
    held = {"output": (m, n, k), "weight": (k, n, m), "input": (k, m, n)}
    if stationary not in held:
        raise ValueError(f"what stays in an array is one of {', '.join(STATIONARY)}, got {stationary!r}")
    across, along, stream = (np.asarray(size, np.float64) for size in held[stationary])
    return np.ceil(across / rows) * np.ceil(along / columns), stream


def array_cycles(
    stationary: str, m: Value, n: Value, k: Value, rows: Value, columns: Value, *, double_buffered: bool = True
) -> FloatArray:
    """Cycles of one product on one array, shape of the arguments broadcast together.

    Streams enter skewed: the last result leaves R + C − 2 cycles after the last value entered. A filling moves R rows of what
    stays; with double buffering that, and the skew, hide behind the streams of the filling before.
    """
    count, stream = folds(stationary, m, n, k, rows, columns)
    skew = np.asarray(rows, np.float64) + columns - 2
    if double_buffered:
        return np.asarray(rows + count * np.maximum(stream, rows) + skew, np.float64)
    return np.asarray(count * (rows + stream + skew), np.float64)


def utilisation(stationary: str, m: Value, n: Value, k: Value, rows: Value, columns: Value) -> FloatArray:
    """Multiply-adds done over multiply-adds the array could have done in those cycles; at most 1."""
    work = np.asarray(m, np.float64) * n * k
    return np.asarray(work / (array_cycles(stationary, m, n, k, rows, columns) * rows * columns))
