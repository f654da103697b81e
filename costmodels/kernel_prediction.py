"""Times of kernels that somebody else listed: rows of text in, seconds with an interval out, and no row is ever dropped.

A row names `op`, `gpu`, `dtype` and the operator's dimensions: m, n, k | batch, heads, kv_heads, q_len, kv_len, head_dim,
causal, implementation | bytes, ranks, ranks_per_node. Norms, softmax and copies take `rows, cols` (or `m, n`), or `bytes`,
the size of the operand. `bytes` of a collective is nccl-tests' size. What cannot be predicted has an `error` text.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from costmodels.kernel_models.forms import IMPLEMENTATIONS
from costmodels.kernel_models.operations import ELEMENT, OPERATIONS, TEXT, complete, dimensions, element_bytes
from costmodels.kernel_models.protocol import KernelModel, KernelTime
from costmodels.kernel_models.registry import DEFAULT, find_kernel_model
from costmodels.kernel_models.symbols import kernel_symbols
from costmodels.metrics import Evidence
from spaces.hardware import UnknownDevice, find_device

Row = Mapping[str, str]
Answer = dict[str, float | str]

_EVIDENCE = {code: code.name.lower().replace("_", "-") for code in Evidence}
_TRUE, _FALSE = frozenset({"true", "1", "yes", "t"}), frozenset({"false", "0", "no", "f"})
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "dtype": tuple(ELEMENT),
    "launch": ("graph", "eager"),
    "cache": ("warm", "cold"),
    "layout": ("forward", "dgrad", "wgrad"),
    "direction": ("forward", "backward"),
    "implementation": IMPLEMENTATIONS,
}
_DTYPES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "float": "fp32",
    "fp8_e4m3": "fp8",
    "e4m3": "fp8",
}
_PER_ROW = 4096  # elements a row of an operand given by its bytes alone


class _Refused(ValueError):
    """Why one row cannot be predicted."""


def predict_kernel_rows(rows: Sequence[Row], model: str = DEFAULT, calibration: str = "") -> list[Answer]:
    """`time_s, time_s_low, time_s_high, evidence, error` for every row, in order; seconds, interval of 90 %.

    A row that cannot be predicted has its reason in `error` and empty cells; none raises. Rows of one operator on one
    device are predicted together. `calibration` is a folder of somebody's own measurements. Raises UnknownKernelModel for a
    model that does not exist, BadMeasurements for measurements that cannot be true.
    """
    chosen = find_kernel_model(model, calibration)
    answers: list[Answer] = [_blank("") for _ in rows]
    groups: dict[tuple[str, str], list[tuple[int, dict[str, float | str]]]] = {}
    for i, row in enumerate(rows):
        try:
            op, device, shape = _read(row)
            groups.setdefault((op, device), []).append((i, shape))
        except _Refused as refused:
            answers[i] = _blank(str(refused))
    for (op, device), members in groups.items():
        for (i, _), answer in zip(members, _answers(chosen, op, device, [shape for _, shape in members]), strict=True):
            answers[i] = answer
    return answers


def _blank(error: str) -> Answer:
    return {"time_s": "", "time_s_low": "", "time_s_high": "", "evidence": "", "error": error}


def _answers(model: KernelModel, op: str, device: str, shapes: Sequence[Mapping[str, float | str]]) -> list[Answer]:
    """One group's answers; a model that fails answers with what it said, for it may be somebody's own."""
    columns = {name: np.array([shape[name] for shape in shapes]) for name in shapes[0]}
    try:
        time = model.predict(op, complete(op, columns), _symbols(device))
    except Exception as failure:
        return [_blank(f"{type(failure).__name__}: {failure}") for _ in shapes]
    return [_filled(time, i) for i in range(len(shapes))]


def _filled(time: KernelTime, i: int) -> Answer:
    value = float(time.value[i])
    if not math.isfinite(value):
        return _blank("the model gives no finite time")
    return {
        "time_s": value,
        "time_s_low": float(time.low[i]),
        "time_s_high": float(time.high[i]),
        "evidence": _EVIDENCE[Evidence(int(time.evidence[i]))],
        "error": "",
    }


@cache
def _symbols(device: str) -> Mapping[str, float]:
    return kernel_symbols(find_device(device))


def _read(row: Row) -> tuple[str, str, dict[str, float | str]]:
    """(operator, device's full name, shape) of one row. Raises _Refused."""
    op = _cell(row, "op").lower()
    if op not in OPERATIONS:
        near = difflib.get_close_matches(op, OPERATIONS, n=3, cutoff=0.4)
        raise _Refused(f"unknown op {op!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))
    try:
        device = find_device(_cell(row, "gpu"))
    except UnknownDevice as unknown:
        raise _Refused(str(unknown)) from None
    words = _words(row)
    numbers = _pointwise(row, str(words["dtype"])) if OPERATIONS[op] == "pointwise" else _numbers(row, op)
    return op, device.name, words | numbers


def _cell(row: Row, name: str) -> str:
    value = row.get(name)
    return "" if value is None else str(value).strip()


def _words(row: Row) -> dict[str, float | str]:
    """The words of a row, each one of those known, blanks at their default. Raises _Refused."""
    words: dict[str, float | str] = {}
    for name, usual in TEXT.items():
        word = _cell(row, name).lower() or usual
        if name in ("causal", "fast_accumulate"):
            if word not in _TRUE | _FALSE:
                raise _Refused(f"{name} is {word!r}, neither true nor false")
            word = "true" if word in _TRUE else "false"
        word = _DTYPES.get(word, word) if name == "dtype" else word
        if name in _CHOICES and word not in _CHOICES[name]:
            raise _Refused(f"{name} {word!r} is none of {', '.join(dict.fromkeys(_CHOICES[name]))}")
        words[name] = word
    return words


def _number(row: Row, name: str, *, blank: float | None = None) -> float:
    """A whole or fractional number above zero. Raises _Refused."""
    cell = _cell(row, name)
    if cell == "" and blank is not None:
        return blank
    if cell == "":
        raise _Refused(f"{name} is missing")
    try:
        value = float(cell)
    except ValueError:
        raise _Refused(f"{name} is {cell!r}, not a number") from None
    if not math.isfinite(value) or value <= 0:
        raise _Refused(f"{name} is {cell}, which is not finite and positive")
    return value


def _numbers(row: Row, op: str) -> dict[str, float | str]:
    """The dimensions of a product, attention or collective; q_len, kv_heads and ranks_per_node may be blank."""
    usual: dict[str, float] = {"groups": 1.0}
    if OPERATIONS[op] == "attention":
        usual["kv_heads"] = _number(row, "heads")
        usual["batch"] = 1.0
        if op == "attention_decode":
            usual["q_len"] = 1.0
        elif _cell(row, "q_len") or _cell(row, "kv_len"):
            usual["q_len"] = usual["kv_len"] = _number(row, "q_len" if _cell(row, "q_len") else "kv_len")
    if OPERATIONS[op] == "collectives":
        usual["ranks_per_node"] = min(_number(row, "ranks"), find_device(_cell(row, "gpu")).devices_per_node)
    shape: dict[str, float | str] = {name: _number(row, name, blank=usual.get(name)) for name in (*dimensions(op), "groups")}
    return shape


def _pointwise(row: Row, dtype: str) -> dict[str, float | str]:
    """rows and cols of an operand: as given, or m and n, or its bytes in rows of 4,096 elements."""
    for first, second in (("rows", "cols"), ("m", "n")):
        if _cell(row, first) or _cell(row, second):
            return {"rows": _number(row, first), "cols": _number(row, second)}
    elements = _number(row, "bytes") / float(element_bytes(np.array([dtype]))[0])
    cols = min(elements, float(_PER_ROW))
    return {"rows": max(elements / cols, 1.0), "cols": cols}
