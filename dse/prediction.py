"""Batch prediction: any number of points somebody else wrote, in and out as rows; none is dropped or moved.

`predict` reads and writes CSV, `predict_rows` takes and gives dictionaries of text. What cannot be predicted says why in
`error`. Rows of one model, stack and device are one batch.
"""

from __future__ import annotations

import csv
import difflib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np

from costmodels.metrics import Evidence, Metrics
from costmodels.training import TrainingModel, training_problem
from dse.prediction_rows import BadRow, Question, Row, read
from dse.schema.fields import checked_calibration
from spaces.architecture import Architecture
from spaces.columns import Columns
from spaces.hardware import Device
from spaces.plan import NAMES, Recompute
from spaces.problem import Problem

_SIDES = ("", "_low", "_high")
RESULTS: Mapping[str, tuple[str, ...]] = {
    "training": (
        *("step_time_s", "step_time_s_low", "step_time_s_high", "tokens_per_s_per_gpu", "model_tflops_per_gpu"),
        *("hw_tflops_per_gpu", "mfu", "hfu", "mfu_causal", "peak_memory_bytes", "device_memory_bytes", "fits"),
        *("evidence", "assumptions", "error"),
    ),
    "serving": (
        *(f"{name}{side}" for name in ("ttft_s", "tpot_s", "request_latency_s", "tokens_per_s_per_gpu") for side in _SIDES),
        *("peak_memory_bytes", "kv_capacity_tokens", "evidence", "assumptions", "error"),
    ),
    "kernel": ("time_s", "time_s_low", "time_s_high", "evidence", "error"),
}
"""Columns appended, by kind; a column of the same name in the input is replaced."""

_LIGHTEST = (Recompute.NONE, Recompute.SELECTIVE, Recompute.FULL)


@dataclass(frozen=True, slots=True)
class Predicted:
    """What became of a file: rows given, rows predicted, and the commonest errors."""

    out: Path
    rows: int
    predicted: int
    errors: tuple[tuple[str, int], ...]
    misspelt: tuple[tuple[str, str], ...] = ()
    """Columns that nothing read, each with the name that was looked for and is nearly the same."""

    def __str__(self) -> str:
        lines = [f"{self.predicted:,} of {self.rows:,} rows predicted; {self.out}"]
        lines += [f"  column {name!r} was not read: did you mean {near!r}?" for name, near in self.misspelt]
        return "\n".join([*lines, *(f"  {count:,} × {error}" for error, count in self.errors)])


class _Watched(dict[str, str]):
    """A row that notes the names that are looked for in it, be they there or not."""

    def __init__(self, row: Mapping[str, str], sought: set[str]) -> None:
        super().__init__(row)
        self._sought = sought

    def get(self, name: str, default: Any = None) -> Any:
        """The cell of that name."""
        self._sought.add(name)
        return super().get(name, default)


def predict(
    points: str | os.PathLike[str],
    out: str | os.PathLike[str],
    kind: str = "training",
    calibration: str | os.PathLike[str] | None = None,
) -> Predicted:
    """Predict a CSV file into another; `calibration` is a folder that `dse calibrate` wrote.

    Raises ValueError for an unknown kind, a file without a header or with bytes that are no text, and an `out` that is the
    file of points itself or would lie in no folder; OSError.
    """
    headings, rows = _read(Path(points))
    if Path(out).exists() and Path(out).samefile(points):
        raise ValueError(f"{out}: is the file of points itself, which would be overwritten: give another one with -o")
    if not Path(out).parent.is_dir():
        raise ValueError(f"{out}: there is no folder {Path(out).parent}: make it first, or give another file with -o")
    sought: set[str] = set()
    answered = predict_rows([_Watched(row, sought) for row in rows], kind, calibration)
    with Path(out).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys([*headings, *RESULTS[kind]])))
        writer.writeheader()
        writer.writerows(answered)
    errors = Counter(row["error"] for row in answered if row["error"])
    common, misspelt = tuple(errors.most_common(5)), _misspelt(headings, sought)
    return Predicted(Path(out), len(rows), len(rows) - errors.total(), common, misspelt)


def _misspelt(headings: Sequence[str], sought: set[str]) -> tuple[tuple[str, str], ...]:
    """Headings that nothing looked for, beside a name that was looked for, is no heading and is nearly the same."""
    missing = sorted(sought - set(headings))
    near = {name: difflib.get_close_matches(name.strip().lower(), missing, 1, 0.8) for name in headings if name not in sought}
    return tuple((name, found[0]) for name, found in near.items() if found)


def _read(points: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Headings and rows of a CSV file; cells beyond the header are left out."""
    try:
        with points.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            headings = list(reader.fieldnames or ())
            rows = [{name: value or "" for name, value in row.items() if name is not None} for row in reader]
    except UnicodeDecodeError as error:
        raise ValueError(f"{points}: not a text file in UTF-8: {error.reason} at byte {error.start}") from None
    except csv.Error as error:
        raise ValueError(f"{points}: not a CSV file: {error}") from None
    if not headings:
        raise ValueError(f"{points}: expected a CSV file with a header line, got an empty one")
    return headings, rows


def predict_rows(
    rows: Sequence[Row], kind: str = "training", calibration: str | os.PathLike[str] | None = None
) -> list[dict[str, Any]]:
    """The rows, in order, each with the results of its kind appended.

    Raises ValueError for an unknown kind, and for a calibration that is none or cannot be true (with its rows named).
    """
    own = checked_calibration(Path(calibration)) if calibration else ""
    if kind not in RESULTS:
        raise ValueError(f"no kind of prediction is called {kind!r}; choose one of {', '.join(RESULTS)}")
    blank: dict[str, Any] = dict.fromkeys(RESULTS[kind], "")
    answered: list[dict[str, Any]] = [{**row, **blank} for row in rows]
    if kind == "kernel":
        return _kernels(rows, own)
    if kind == "serving":
        from dse.serving_prediction import answer_serving
        from dse.serving_rows import read_serving

        return _answered(rows, answered, read_serving, answer_serving)
    return _answered(rows, answered, read, partial(_evaluated, calibration=own))


class _Asked(Protocol):
    """A row as a question; rows of one group are evaluated as one batch."""

    @property
    def group(self) -> tuple[Any, ...]: ...


Asked = TypeVar("Asked", bound=_Asked)
Evaluate: TypeAlias = Callable[[Sequence[Asked]], list[dict[str, Any]]]


def _answered(
    rows: Sequence[Row], answered: list[dict[str, Any]], ask: Callable[[Row], Asked], evaluate: Evaluate[Asked]
) -> list[dict[str, Any]]:
    """Every row read as a question, and the questions evaluated group by group."""
    questions: dict[int, Asked] = {}
    for i, row in enumerate(rows):
        try:
            questions[i] = ask(row)
        except BadRow as error:
            answered[i]["error"] = str(error)
    for members in _groups(questions).values():
        _answer(answered, members, [questions[i] for i in members], evaluate)
    return answered


def _kernels(rows: Sequence[Row], calibration: str) -> list[dict[str, Any]]:
    """Rows that each name one kernel, with its time appended; seconds."""
    from costmodels.kernel_prediction import predict_kernel_rows

    found = predict_kernel_rows([{name: value or "" for name, value in row.items()} for row in rows], calibration=calibration)
    results = [{name: _text(answer[name]) for name in RESULTS["kernel"]} for answer in found]
    return [{**row, **result} for row, result in zip(rows, results, strict=True)]


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.9g}"


def _groups(questions: Mapping[int, Asked]) -> dict[tuple[Any, ...], list[int]]:
    """Row numbers by model, stack and device."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, question in questions.items():
        groups.setdefault(question.group, []).append(i)
    return groups


def _answer(
    answered: list[dict[str, Any]], members: Sequence[int], questions: Sequence[Asked], evaluate: Evaluate[Asked]
) -> None:
    """Fill in one group; when the batch fails, each row by itself, so that one bad row spoils no other."""
    try:
        results = evaluate(questions)
    except Exception as error:  # a row must never end the file
        if len(members) == 1:
            answered[members[0]]["error"] = f"{type(error).__name__}: {error}"
            return
        for i, question in zip(members, questions, strict=True):
            _answer(answered, [i], [question], evaluate)
        return
    for i, result in zip(members, results, strict=True):
        answered[i].update(result)


def _evaluated(questions: Sequence[Question], calibration: str = "") -> list[dict[str, Any]]:
    """Results of one group of questions, which share model, stack and device."""
    first = questions[0]
    asked = _asked_of_own if calibration else _asked
    problem, model = asked(
        first.architecture, first.stack, first.device, tuple(sorted(first.fixed.items())), first.optimizer, calibration
    )
    symbols = {name: np.array([q.symbols[name] for q in questions], np.int64) for name in first.symbols}
    blank = np.array([q.recompute_open for q in questions], np.bool_)
    if blank.any():
        symbols["recompute"] = _lightest(model, problem, symbols, blank)
    metrics = model.evaluate(problem, Columns.from_values(symbols))
    return [_result(metrics, i, q, int(symbols["recompute"][i])) for i, q in enumerate(questions)]


def _asked_of_own(
    architecture: Architecture,
    stack: str,
    device: Device,
    fixed: tuple[tuple[str, float], ...],
    optimizer: str | None,
    calibration: str,
) -> tuple[Problem, TrainingModel]:
    """The problem of a group of questions, and a model that remembers the blocks it has met."""
    return training_problem(architecture, stack, device, dict(fixed), optimizer, calibration=calibration), TrainingModel()


_asked = lru_cache(maxsize=8)(_asked_of_own)
"""The same for those who ask row by row; measurements of one's own may change between two rows."""


def _lightest(model: TrainingModel, problem: Problem, symbols: Mapping[str, Any], blank: Any) -> Any:
    """Recomputation of every row: its own, or where blank the lightest that fits, else full."""
    rows, policies = np.flatnonzero(blank), np.array(_LIGHTEST, np.int64)
    others = Columns.from_values({name: values for name, values in symbols.items() if name != "recompute"})
    many = others.take(np.tile(rows, len(policies)))
    trial = replace(
        many,
        codes={**many.codes, "recompute": np.repeat(np.arange(len(policies)), len(rows))},
        levels={**many.levels, "recompute": ("recompute", policies)},
    )
    fits = (model.bound(problem, trial).violation["memory"] <= 0).reshape(len(policies), len(rows))
    chosen = symbols["recompute"].copy()
    chosen[rows] = policies[np.where(fits.any(axis=0), np.argmax(fits, axis=0), len(policies) - 1)]
    return chosen


def _result(metrics: Metrics, i: int, question: Question, recompute: int) -> dict[str, Any]:
    """The appended cells of one row."""

    def at(name: str, columns: Callable[[], Mapping[str, Any]] = lambda: metrics.value, scale: float = 1.0) -> float:
        return float(columns()[name][i]) / scale

    assumed = list(question.assumptions)
    if question.recompute_open:
        assumed.append(f"recompute {NAMES['recompute'][recompute]}, the lightest that fits")
    result = {
        "step_time_s": at("step_time"),
        "step_time_s_low": at("step_time", lambda: metrics.low),
        "step_time_s_high": at("step_time", lambda: metrics.high),
        "tokens_per_s_per_gpu": at("tokens_per_second_per_device"),
        "model_tflops_per_gpu": at("model_flops_per_device", scale=1e12),
        "hw_tflops_per_gpu": at("hardware_flops_per_device", scale=1e12),
        "mfu": at("mfu"),
        "hfu": at("hfu"),
        "mfu_causal": at("mfu_causal"),
        "peak_memory_bytes": at("peak_memory"),
        "device_memory_bytes": at("memory"),
    }
    if not all(np.isfinite(value) for value in result.values()):
        return {"error": "the model gives no finite prediction for this plan", "assumptions": "; ".join(assumed)}
    cells: dict[str, Any] = {name: f"{value:.9g}" for name, value in result.items()}
    evidence = Evidence.FIRST_PRINCIPLES if metrics.evidence is None else Evidence(int(metrics.evidence[i]))
    cells["fits"] = str(bool(metrics.violation["memory"][i] <= 0)).lower()
    cells["evidence"] = evidence.name.lower().replace("_", "-")
    cells["assumptions"] = "; ".join(assumed)
    return cells
