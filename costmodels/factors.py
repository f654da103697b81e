"""Records of arrays whose last axis is design points or combinations: gathered by index, joined end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from spaces.columns import IntArray

Record = TypeVar("Record")


def gathered(record: Record, index: IntArray) -> Record:
    """The same record with every array taken at `index` along its last axis: from combinations to design points.

    An array whose last axis has one entry (`thinned`) says the same for every combination.
    """
    return _mapped(record, lambda arrays: _gathered(arrays[0], index), [record])


def _gathered(array: NDArray[Any], index: IntArray) -> NDArray[Any]:
    if array.shape[-1] == 1:
        if len(index) == 1:
            return array
        return np.broadcast_to(array, (*array.shape[:-1], len(index)))
    return array.take(index, axis=-1)


def thinned(record: Record) -> Record:
    """The same record with one entry in place of arrays of equal entries (a dense model's experts take no time)."""
    return _mapped(record, lambda arrays: _thinned(arrays[0]), [record])


def _thinned(array: NDArray[Any]) -> NDArray[Any]:
    if array.shape[-1] < 2:
        return array
    few = array[..., :1]
    return few.copy() if np.array_equal(array[..., -1:], few) and bool((array == few).all()) else array


def joined(records: Sequence[Record]) -> Record:
    """Records of consecutive slices as one."""
    if len(records) == 1:
        return records[0]
    return _mapped(records[0], lambda arrays: np.concatenate(arrays, axis=-1), records)


def _mapped(like: Record, combine: Any, records: Sequence[Record]) -> Record:
    values: dict[str, Any] = {}
    for field in fields(like):  # type: ignore[arg-type]
        parts = [getattr(record, field.name) for record in records]
        if isinstance(parts[0], Mapping):
            values[field.name] = {name: combine([part[name] for part in parts]) for name in parts[0]}
        else:
            values[field.name] = combine(parts)
    return type(like)(**values)
