"""What a slice, or another piece of a search, gave, as bytes: how it travels from a worker, and how it is written down.

Arrays and JSON, no pickle.

A table of contents in JSON, after its length in 8 bytes (little-endian), then the arrays one after the other. (An npz archive
of the same arrays takes ten times as long to read.)
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.metrics import Metrics
from search.certificate import Failure
from search.front import Front, Points, TopList
from search.keeping import Reservoir, State
from spaces.columns import Columns

_FORMAT = 2


def packed(state: State) -> bytes:
    """The state as matrices with a table of contents."""
    arrays: dict[str, NDArray[Any]] = {}
    kept = state.reservoir.trimmed()
    contents: dict[str, Any] = {
        "front": _put_points(arrays, "front", state.front.points),
        "tops": [
            [top.objective, top.limit, _put_points(arrays, f"top{i}", top.points)] for i, top in enumerate(state.tops)
        ],
        "closest": None if state.closest is None else _put_points(arrays, "closest", state.closest),
        "near": None if state.near is None else _put_columns(arrays, "near", state.near),
        "reservoir": [kept.limit, _put_columns(arrays, "reservoir", kept.columns), _number(kept.below)],
        "visited": state.visited,
        "evaluated": state.evaluated,
        "feasible": state.feasible,
        "failed": state.failed,
        "pruned": state.pruned,
        "reasons": state.reasons,
        "broken": state.broken,
        "failures": [[failure.point, failure.reason] for failure in state.failures],
        "closest_worst": _number(state.closest_worst),
    }
    arrays |= {
        "ties": state.front.ties,
        "reservoir.costs": kept.costs,
        "reservoir.feasible": kept.feasible,
        "reservoir.ordinals": kept.ordinals,
        "reservoir.keys": kept.keys,
        "near.bounds": state.near_bounds,
        "near.ordinals": state.near_ordinals,
    }
    return packed_arrays(arrays, contents)


def unpacked(data: bytes, none: Points) -> State:
    """The state again; `none` are no points of the same space. Raises ValueError for bytes of another format."""
    arrays, contents = unpacked_arrays(data)
    levels = none.columns.levels
    limit, sampled, below = contents["reservoir"]
    near, closest = contents["near"], contents["closest"]
    return State(
        front=Front(points=_points(arrays, "front", contents["front"], levels), ties=arrays["ties"]),
        tops=tuple(
            TopList(objective=objective, limit=most, points=_points(arrays, f"top{i}", table, levels))
            for i, (objective, most, table) in enumerate(contents["tops"])
        ),
        reservoir=Reservoir(
            limit,
            _columns(arrays, "reservoir", sampled, levels),
            arrays["reservoir.costs"],
            arrays["reservoir.feasible"],
            arrays["reservoir.ordinals"],
            arrays["reservoir.keys"],
            float(below),
        ),
        visited=contents["visited"],
        evaluated=contents["evaluated"],
        feasible=contents["feasible"],
        failed=contents["failed"],
        pruned=contents["pruned"],
        reasons=contents["reasons"],
        broken=contents["broken"],
        failures=tuple(Failure(point=point, reason=reason) for point, reason in contents["failures"]),
        closest=None if closest is None else _points(arrays, "closest", closest, levels),
        closest_worst=float(contents["closest_worst"]),
        near=None if near is None else _columns(arrays, "near", near, levels),
        near_bounds=arrays["near.bounds"],
        near_ordinals=arrays["near.ordinals"],
    )


def packed_points(points: Points, worst: NDArray[np.float64], lost: Mapping[int, str]) -> bytes:
    """Points with all their figures, the greatest violation of each, (n,), and by ordinal why others failed."""
    arrays: dict[str, NDArray[Any]] = {"worst": worst}
    contents = {"points": _put_points(arrays, "points", points), "lost": list(lost.items())}
    return packed_arrays(arrays, contents)


def unpacked_points(data: bytes, none: Points) -> tuple[Points, NDArray[np.float64], dict[int, str]]:
    """They again; `none` are no points of the same space."""
    arrays, contents = unpacked_arrays(data)
    return _points(arrays, "points", contents["points"], none.columns.levels), arrays["worst"], dict(contents["lost"])


def packed_arrays(arrays: Mapping[str, NDArray[Any]], contents: Mapping[str, Any] = MappingProxyType({})) -> bytes:
    """Arrays by name, and what JSON can say beside them."""
    table = [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
    head = json.dumps({**contents, "format": _FORMAT, "arrays": table}).encode()
    return b"".join([struct.pack("<Q", len(head)), head, *(np.ascontiguousarray(a).tobytes() for a in arrays.values())])


def unpacked_arrays(data: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays, read-only, and what was said beside them. Raises ValueError for bytes of another format."""
    (length,) = struct.unpack_from("<Q", data)
    contents = json.loads(data[8 : 8 + length])
    if contents["format"] != _FORMAT:
        raise ValueError(f"a slice was written down in format {contents['format']}; this version reads {_FORMAT}")
    arrays: dict[str, NDArray[Any]] = {}
    at = 8 + length
    for name, kind, shape in contents["arrays"]:
        dtype, count = np.dtype(kind), math.prod(shape)
        arrays[name] = np.frombuffer(data, dtype, count, at).reshape(shape)
        at += count * dtype.itemsize
    return arrays, contents


def _number(value: float) -> float | str:
    """JSON has no infinity."""
    return float(value) if np.isfinite(value) else str(float(value))


def _put_columns(arrays: dict[str, NDArray[Any]], name: str, columns: Columns) -> list[str]:
    """Put the codes (axes, n) among the arrays; the axes in order."""
    arrays[f"{name}.codes"] = np.array([*columns.codes.values()]).reshape(len(columns.codes), columns.n)
    return list(columns.codes)


def _columns(arrays: Mapping[str, NDArray[Any]], name: str, axes: list[str], levels: Mapping[str, Any]) -> Columns:
    codes = arrays[f"{name}.codes"]
    return Columns(n=codes.shape[1], codes=dict(zip(axes, codes, strict=True)), levels=levels)


def _put_points(arrays: dict[str, NDArray[Any]], name: str, points: Points) -> dict[str, Any]:
    """Put the points among the arrays, their figures as one matrix (figures, n); what its rows are."""
    metrics = points.metrics
    figures: dict[tuple[str, ...], NDArray[Any]] = {}
    for side in ("value", "low", "high", "violation"):
        columns: Mapping[str, NDArray[Any]] = getattr(metrics, side)
        figures |= {(side, metric): columns[metric] for metric in columns}
    for metric, parts in metrics.parts.items():
        figures |= {("parts", metric, part): column for part, column in parts.items()}
    rows = [np.broadcast_to(np.asarray(column, np.float64), (metrics.n,)) for column in figures.values()]
    arrays[f"{name}.figures"] = np.array(rows, np.float64).reshape(len(rows), metrics.n)
    arrays[f"{name}.costs"] = points.costs
    arrays[f"{name}.ordinals"] = points.ordinals
    if metrics.evidence is not None:
        arrays[f"{name}.evidence"] = metrics.evidence
    return {"axes": _put_columns(arrays, name, points.columns), "figures": [list(key) for key in figures]}


def _points(
    arrays: Mapping[str, NDArray[Any]], name: str, table: Mapping[str, Any], levels: Mapping[str, Any]
) -> Points:
    figures = arrays[f"{name}.figures"]
    sides: dict[str, dict[str, Any]] = {"value": {}, "low": {}, "high": {}, "violation": {}, "parts": {}}
    for (side, metric, *part), column in zip(table["figures"], figures, strict=True):
        if part:
            sides[side].setdefault(metric, {})[part[0]] = column
        else:
            sides[side][metric] = column
    metrics = Metrics(n=figures.shape[1], evidence=arrays.get(f"{name}.evidence"), **sides)
    return Points(
        columns=_columns(arrays, name, table["axes"], levels),
        metrics=metrics,
        costs=arrays[f"{name}.costs"],
        ordinals=arrays[f"{name}.ordinals"],
    )
