"""Traces of real requests: CSV or JSONL with arrival, input and output tokens; the public Azure traces' columns as they are."""

from __future__ import annotations

import csv
import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from spaces.workload import Requests

_NAMES: Mapping[str, tuple[str, ...]] = {
    "arrival": ("arrival", "arrival_s", "arrival_time", "timestamp", "time"),
    "input_tokens": ("input_tokens", "contexttokens", "prompt_tokens", "prompt", "input_length"),
    "output_tokens": ("output_tokens", "generatedtokens", "completion_tokens", "output", "output_length"),
}
"""Columns that are understood, in any case, by what they mean."""


class BadTrace(ValueError):
    """A trace that cannot be served as it is; the message names the line and what is wrong with it."""


def read_trace(path: Path) -> Requests:
    """The requests of a trace, their first at time 0. Times are seconds or dates.

    Raises BadTrace for missing columns, times that are unsorted, negative or unreadable, and requests of no tokens; OSError.
    """
    rows = list(_rows(path))
    if not rows:
        raise BadTrace(f"{path.name} holds no requests")
    columns = {meaning: _column(path, list(rows[0][1]), meaning) for meaning in _NAMES}
    arrival = [_time(path, line, row[columns["arrival"]]) for line, row in rows]
    tokens = {
        meaning: [_tokens(path, line, meaning, row[columns[meaning]]) for line, row in rows]
        for meaning in ("input_tokens", "output_tokens")
    }
    for (line, _), here, before in zip(rows[1:], arrival[1:], arrival, strict=False):
        if here < before:
            raise BadTrace(f"{path.name}:{line}: arrives before the request above it; sort the trace by arrival")
    return Requests(
        arrival=np.array(arrival) - arrival[0],
        prompt=np.array(tokens["input_tokens"]),
        output=np.array(tokens["output_tokens"]),
    )


def _rows(path: Path) -> Iterable[tuple[int, Mapping[str, Any]]]:
    """(line, row) of a CSV file, or of a file of one JSON object a line."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        if path.suffix.lower() in (".jsonl", ".ndjson", ".json"):
            for line, text in enumerate(file, 1):
                if text.strip():
                    yield line, _object(path, line, text)
            return
        reader = csv.DictReader(file)
        for row in reader:
            yield reader.line_num, row


def _object(path: Path, line: int, text: str) -> Mapping[str, Any]:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadTrace(f"{path.name}:{line}: not JSON: {error.msg}") from None
    if not isinstance(row, Mapping):
        raise BadTrace(f"{path.name}:{line}: expected an object with arrival, input_tokens and output_tokens")
    return row


def _column(path: Path, headings: Sequence[str], meaning: str) -> str:
    """The heading that means `meaning`."""
    plain = {str(heading).strip().lower(): str(heading) for heading in headings}
    for name in _NAMES[meaning]:
        if name in plain:
            return plain[name]
    near = difflib.get_close_matches(meaning, list(plain), 1)
    hint = f" (is it {near[0]!r}?)" if near else ""
    known = "arrival, input_tokens and output_tokens, or TIMESTAMP, ContextTokens and GeneratedTokens"
    raise BadTrace(f"{path.name} has no column {meaning}{hint}; it has {', '.join(map(str, headings))}, and needs {known}")


def _time(path: Path, line: int, value: Any) -> float:
    """Seconds, from a number or a date."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        try:
            moment = datetime.fromisoformat(_microseconds(str(value).strip()))
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except ValueError:
            raise BadTrace(f"{path.name}:{line}: arrival {value!r} is neither seconds nor a date") from None
    if not math.isfinite(seconds) or seconds < 0:
        raise BadTrace(f"{path.name}:{line}: arrival {value} is not a time: seconds are finite and not negative")
    return seconds


def _microseconds(text: str) -> str:
    """A date with its fraction cut to six digits, which is all that Python 3.11 reads."""
    head, dot, fraction = text.partition(".")
    digits = len(fraction) - len(fraction.lstrip("0123456789"))
    return f"{head}.{fraction[:digits][:6].ljust(6, '0')}{fraction[digits:]}" if dot else text


def _tokens(path: Path, line: int, meaning: str, value: Any) -> int:
    try:
        count = float(value)
    except (TypeError, ValueError):
        raise BadTrace(f"{path.name}:{line}: {meaning} {value!r} is not a number") from None
    if not math.isfinite(count) or count != int(count) or count < 1:
        raise BadTrace(f"{path.name}:{line}: {meaning} is {value}: a request has at least 1 token in and out")
    return int(count)
