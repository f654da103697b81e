"""Traces of requests read from files: CSV or JSONL with arrival, prompt tokens and output tokens.

The public Azure LLM traces' columns (TIMESTAMP, ContextTokens, GeneratedTokens; github.com/Azure/AzurePublicDataset,
AzureLLMInferenceDataset2023.md) are read as they are, and so are Mooncake's (timestamp in ms, input_length, output_length).
"""

from __future__ import annotations

import csv
import difflib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from spaces.workload import Requests

NAMES: Mapping[str, tuple[str, ...]] = {
    "arrival": ("arrival", "arrival_s", "arrival_time", "timestamp", "time"),
    "prompt": ("prompt", "prompt_tokens", "input_tokens", "input", "input_length", "contexttokens", "isl"),
    "output": ("output", "output_tokens", "completion_tokens", "output_length", "generatedtokens", "osl"),
}
"""Column names understood, compared without case."""
PRIORITY = "priority"
"""An optional column: whole numbers, the smaller first."""


class BadTrace(ValueError):
    """A trace that cannot be read; the message says where and why."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """Requests of a trace, and how many were left out: `longer_than_context`, and `empty` (no prompt or no answer)."""

    requests: Requests
    longer_than_context: int
    empty: int


def read_trace(path: str | os.PathLike[str], *, context: int = 0, drop_empty: bool = False) -> Trace:
    """Read a trace; requests longer than `context` tokens (0: no limit) are left out and counted.

    Requests without prompt or answer are an error, or left out and counted with `drop_empty`. Times count from the first
    arrival; unsorted or negative ones are an error. Where there is a column `priority`, the smaller goes first. Raises
    BadTrace, OSError.
    """
    file = Path(path)
    arrival: list[float] = []
    prompt: list[int] = []
    output: list[int] = []
    priority: list[int] = []
    lines: list[int] = []
    columns: dict[str, str] | None = None
    scale, urgent = 1.0, None
    for line, row in _readable(file):
        if columns is None:
            columns = _columns(file, row)
            mooncake = columns["arrival"].lower() == "timestamp" and columns["prompt"].lower() == "input_length"
            scale = 1e-3 if mooncake else 1.0
            urgent = next((str(name) for name in row if str(name).strip().lower() == PRIORITY), None)
        lines.append(line)
        arrival.append(scale * _time(row.get(columns["arrival"]), file, line, columns["arrival"]))
        prompt.append(_count(row.get(columns["prompt"]), file, line, columns["prompt"]))
        output.append(_count(row.get(columns["output"]), file, line, columns["output"]))
        if urgent is not None:
            priority.append(_count(row.get(urgent), file, line, urgent, "whole number"))
    if not arrival:
        raise BadTrace(f"{file.name} holds no requests")
    times, p, o = np.asarray(arrival), np.asarray(prompt), np.asarray(output)
    if np.any(times < 0):
        first = int(np.argmax(times < 0))
        raise BadTrace(f"{file.name}:{lines[first]}: arrives at {times[first]:g} s: times are not negative")
    if np.any(np.diff(times) < 0):
        line = lines[int(np.argmax(np.diff(times) < 0)) + 1]
        raise BadTrace(f"{file.name}:{line}: arrives before the request above it: sort the trace by arrival")
    empty = (p < 1) | (o < 1)
    if np.all(empty) or (np.any(empty) and not drop_empty):
        first = int(np.argmax(empty))
        lengths = f"{p[first]} prompt and {o[first]} output tokens"
        raise BadTrace(f"{file.name}:{lines[first]}: has {lengths}: a request has at least 1 of each")
    long = (p + o > context) & ~empty if context else np.zeros(len(p), np.bool_)
    kept = ~(empty | long)
    if not np.any(kept):
        shortest = int(np.min((p + o)[~empty]))
        raise BadTrace(
            f"{file.name}: every request is longer than the context of {context} tokens; the shortest has {shortest}"
        )
    times = times[kept] - times[kept][0]
    return Trace(
        requests=Requests(
            arrival=times, prompt=p[kept], output=o[kept], priority=np.asarray(priority)[kept] if priority else None
        ),
        longer_than_context=int(np.sum(long)),
        empty=int(np.sum(empty)),
    )


def _readable(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows; what is no text is told as such."""
    try:
        yield from _rows(file)
    except (UnicodeDecodeError, csv.Error):
        raise BadTrace(f"{file.name} is no text: a trace is CSV, or JSONL with one object a line") from None


def _rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with file.open(newline="", encoding="utf-8-sig") as text:
        if file.suffix.lower() in (".jsonl", ".json", ".ndjson"):
            for line, entry in enumerate(text, 1):
                if not entry.strip():
                    continue
                try:
                    row = json.loads(entry)
                except json.JSONDecodeError as error:
                    raise BadTrace(f"{file.name}:{line}: not JSON ({error.msg}); a trace has one object a line") from None
                if not isinstance(row, dict):
                    raise BadTrace(f"{file.name}:{line}: {entry.strip()[:40]!r} is no object with named fields")
                yield line, row
        else:
            reader = csv.DictReader(text)
            for row in reader:
                yield reader.line_num, row


def _columns(file: Path, row: Mapping[str, Any]) -> dict[str, str]:
    """The trace's own name of each column."""
    there = {str(name).strip().lower(): str(name) for name in row}
    found = {wanted: next((there[name] for name in names if name in there), "") for wanted, names in NAMES.items()}
    missing = [wanted for wanted, name in found.items() if not name]
    if missing:
        wanted = missing[0]
        free = [name for name in there if there[name] not in found.values()]
        near = next((near for name in NAMES[wanted] for near in difflib.get_close_matches(name, free, 1)), "")
        hint = f" (is it {near!r}?)" if near else ""
        known = "; ".join(f"{name} ({', '.join(NAMES[name])})" for name in missing)
        raise BadTrace(f"{file.name} has no column {wanted}{hint}; it has {', '.join(map(str, row))}, and needs {known}")
    return found


def _time(value: Any, file: Path, line: int, column: str) -> float:
    """Seconds: a number, or a date and time (seven decimals as in Azure's traces)."""
    text = str(value).strip()
    try:
        seconds = float(text)
    except ValueError:
        whole, dot, rest = text.partition(".")
        digits = "".join(character for character in rest if character.isdigit()) if dot else ""
        try:
            moment = datetime.fromisoformat(whole if dot else text.replace("Z", "+00:00"))
        except ValueError:
            raise BadTrace(f"{file.name}:{line}: {column} is {text!r}, neither seconds nor a date and time") from None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        seconds = moment.timestamp()
        seconds += float(f"0.{digits}") if digits else 0.0
    if not math.isfinite(seconds):
        raise BadTrace(f"{file.name}:{line}: {column} is {text!r}: times are finite")
    return seconds


def _count(value: Any, file: Path, line: int, column: str, what: str = "number of tokens") -> int:
    try:
        number = float(str(value).strip())
    except ValueError:
        number = math.nan
    if not number.is_integer():
        raise BadTrace(f"{file.name}:{line}: {column} is {value!r}, not a {what}")
    return int(number)
