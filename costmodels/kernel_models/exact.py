"""Shapes that were measured: found again to the last dimension, they are answered by their measurement."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.kernel_models.fitted import FOLDER, SYMBOLS
from costmodels.kernel_models.forms import prepared
from costmodels.kernel_models.operations import TEXT, DeviceSymbols, Shapes, dimensions
from costmodels.kernel_models.protocol import KernelTime, interval
from costmodels.kernel_models.samples import Sample
from costmodels.measurements import ROOT, data_digest
from costmodels.metrics import Evidence
from spaces.columns import FloatArray, IntArray

Table = Mapping[str, tuple[float, float]]
"""Shape, as `keys` writes it -> (seconds, relative spread of the repeats)."""
Known = Mapping[str, Mapping[str, Table]]
"""Device -> operator -> its table."""

LEAST = 0.03  # half width in log time: another day, or another machine of the kind (repeated rows of both Hoppers)


def told_words(op: str, at: Shapes) -> list[NDArray[Any]]:
    """The words that tell kernels apart, the launch aside; what means nothing for a row is left at its default."""
    words = {name: at[name] for name in TEXT if name != "launch"}
    words["fast_accumulate"] = np.where(at["dtype"] == "fp8", at["fast_accumulate"], TEXT["fast_accumulate"])
    if op == "attention_decode":  # one query sees all keys, masked or not
        words["causal"] = np.where(at["q_len"] == 1, TEXT["causal"], at["causal"])
    return list(words.values())


def keys(op: str, at: Shapes) -> list[str]:
    """What identifies each prepared row, as text: words and dimensions."""
    words = [column.tolist() for column in told_words(op, at)]
    sizes = [at[name].tolist() for name in (*dimensions(op), "groups")]
    told = [" ".join(row) for row in zip(*words, strict=True)]
    return [
        f"{word} {'x'.join(f'{size:.12g}' for size in row)}" for word, row in zip(told, zip(*sizes, strict=True), strict=True)
    ]


def known_of(many: Sequence[Sample]) -> Known:
    """The samples' rows as a table; of a shape measured twice, the faster row (a clock that dipped only ever adds)."""
    found: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
    for sample in many:
        own = found.setdefault(sample.device, {}).setdefault(sample.op, {})
        for key, time, spread in zip(keys(sample.op, sample.at), sample.time.tolist(), sample.spread.tolist(), strict=True):
            if key not in own or time < own[key][0]:
                own[key] = (time, spread)
    return found


def write_known(known: Known, family: str, root: Path, folder: Path = FOLDER) -> None:
    """Write `<family>.measured.json` beside the fit, with the hash of the data."""
    facts = {"data": data_digest(family, root), "devices": known}
    (folder / f"{family}.measured.json").write_text(json.dumps(facts, separators=(",", ":")) + "\n", encoding="utf-8")


@cache
def read_known(family: str, folder: Path = FOLDER, root: Path = ROOT) -> Known:
    """What `write_known` wrote; empty when there is nothing, or it was made from other data than that at hand."""
    path = folder / f"{family}.measured.json"
    if not path.exists():
        return {}
    facts = json.loads(path.read_text(encoding="utf-8"))
    if facts["data"] != data_digest(family, root):
        return {}
    return facts["devices"]  # type: ignore[no-any-return]


def same_device(device: DeviceSymbols, other: DeviceSymbols) -> bool:
    """Whether two sets of symbols are of one device of the catalogue, by every figure that kernels depend on."""
    return all(device.get(name, 0.0) == other.get(name, 0.0) for name in SYMBOLS)


def measured(op: str, shapes: Shapes, device: DeviceSymbols, time: KernelTime, table: Table) -> KernelTime:
    """`time` with the measurement in place of the answer where the shape was measured (in a graph, as the rows are)."""
    rows, pairs = measured_rows(op, shapes, device, table)
    if not len(rows):
        return time
    own = interval(pairs[:, 0], np.maximum(LEAST, pairs[:, 1]), np.full(len(rows), Evidence.MEASURED), np.zeros(len(rows)))
    value, low, high, evidence = time.value.copy(), time.low.copy(), time.high.copy(), time.evidence.copy()
    value[rows], low[rows], high[rows], evidence[rows] = own.value, own.low, own.high, own.evidence
    return KernelTime(value=value, low=low, high=high, evidence=evidence)


def measured_rows(op: str, shapes: Shapes, device: DeviceSymbols, table: Table) -> tuple[IntArray, FloatArray]:
    """Which rows were measured, (k,), and their seconds and relative spread, (k, 2)."""
    found: list[tuple[float, float] | None] = []
    if table:
        at = prepared(op, shapes, device)
        found = [table.get(key) for key in keys(op, at)]
    rows = np.array([i for i, pair in enumerate(found) if pair is not None and at["launch"][i] == "graph"], dtype=np.int64)
    return rows, np.array([found[i] for i in rows], dtype=np.float64).reshape(len(rows), 2)
