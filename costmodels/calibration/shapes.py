"""Shapes somebody asks to have measured: a CSV file of matrix products and attention calls, as tasks of their suites.

Columns are those of the suites' files; `op` and the dimensions are needed, what else is blank or absent takes its default.
Standard library alone.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from costmodels.calibration import attention, gemm
from costmodels.calibration.suite import Cell, Suite, Task, row_key

SUITE_OF: Mapping[str, Suite] = {
    "gemm": gemm.SUITE,
    "attention_prefill": attention.SUITE,
    "attention_backward": attention.SUITE,
    "attention_decode": attention.SUITE,
}
"""Operators whose shape can be given, and the suite that measures them."""

DEFAULTS: Mapping[str, Mapping[str, Cell]] = {
    "gemm": {"dtype": "bf16", "layout": "forward", "groups": 1, "cache": "warm", "launch": "graph"},
    "attention": {"dtype": "bf16", "implementation": "default", "cache": "warm", "launch": "graph"},
}
_WORDS = frozenset({"op", "dtype", "layout", "implementation", "cache", "launch"})
_FLAGS = frozenset({"causal", "fast_accumulate"})


class BadShapes(ValueError):
    """Rows that cannot be measured; the message names each with its line."""


def read_shapes(path: Path) -> tuple[Suite, ...]:
    """The suites that the file's operators belong to, each with the file's rows as its tasks, in order and each once.

    Raises BadShapes naming every bad row, OSError.
    """
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    tasks: dict[str, dict[tuple[str, ...], Task]] = {}
    wrong = []
    for line, row in enumerate(rows, 2):
        try:
            suite = _suite(row)
            task = _task(suite, row)
        except BadShapes as error:
            wrong.append(f"line {line}: {error}")
            continue
        tasks.setdefault(suite.name, {}).setdefault(row_key(suite.key, task.key), task)
    if wrong or not rows:
        raise BadShapes(f"{path}: {'; '.join(wrong) or 'no shapes in it'}")
    suites = {suite.name: suite for suite in SUITE_OF.values()}
    return tuple(_given(suites[name], list(found.values())) for name, found in tasks.items())


def _given(suite: Suite, tasks: Sequence[Task]) -> Suite:
    """The suite with these tasks in place of its own, however small a run is wanted."""
    return replace(suite, tasks=lambda _: list(tasks))


def _suite(row: Mapping[str, str | None]) -> Suite:
    op = (row.get("op") or "").strip()
    if op not in SUITE_OF:
        raise BadShapes(f"op {op!r} is none of {', '.join(SUITE_OF)}")
    return SUITE_OF[op]


def _task(suite: Suite, row: Mapping[str, str | None]) -> Task:
    """One row as a task. Raises BadShapes."""
    key: dict[str, Cell] = {}
    for column in suite.key:
        text = (row.get(column) or "").strip()
        key[column] = _cell(column, text) if text else _default(suite.name, column, key)
    return Task(key=key, seconds=_seconds(key))


def _cell(column: str, text: str) -> Cell:
    if column in _WORDS:
        return text
    if column in _FLAGS:
        if text not in ("true", "false"):
            raise BadShapes(f"{column} is {text!r}, not true or false")
        return text == "true"
    if not text.isdecimal() or int(text) < 1:
        raise BadShapes(f"{column} is {text!r}, not a whole number from 1")
    return int(text)


def _default(suite: str, column: str, key: Mapping[str, Cell]) -> Cell:
    """What a blank means; columns come in order, so that operator and format are known."""
    if column == "fast_accumulate":
        return key["dtype"] == "fp8"
    if column == "causal":
        return key["op"] != "attention_decode"
    if column not in DEFAULTS[suite]:
        raise BadShapes(f"{column} is missing")
    return DEFAULTS[suite][column]


def _seconds(key: Mapping[str, Cell]) -> float:
    """A guess of what measuring a row costs; the suite's own pace corrects it."""

    def product(*columns: str) -> float:
        total = 1.0
        for column in columns:
            total *= float(key[column])
        return total

    if key["op"] == "gemm":
        return 0.05 + 12 * 2 * product("m", "n", "k", "groups") / 6e14
    slower = 4.5 if key["op"] == "attention_backward" else 1.0
    rate = 8e13 if key["implementation"] in ("efficient", "unfused") else 3e14
    return 0.05 + 40 * slower * product("batch", "heads", "q_len", "kv_len", "head_dim") / rate
