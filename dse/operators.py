"""What the training model tells of a single plan: time per operator, memory per stage; nothing where it does not tell."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spaces.columns import Columns
from spaces.problem import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTime:
    """One operator of the busiest device in a step: calls, seconds in all, its roofline bound, FLOPs and bytes."""

    name: str
    kind: str
    phase: str
    calls: float
    time: float
    roofline_time: float
    flops: float
    bytes: float
    evidence: str


def operator_times(problem: Problem, columns: Columns) -> tuple[OperatorTime, ...]:
    """Operators of a batch of one, in the order of the model."""
    rows = _told("explain", problem, columns)
    return tuple(OperatorTime(**{name: getattr(row, name) for name in OperatorTime.__slots__}) for row in rows)


def stage_memory(problem: Problem, columns: Columns) -> tuple[tuple[str, Mapping[str, float]], ...]:
    """(stage, bytes by part) of each distinct stage of a batch of one."""
    return tuple(_told("stage_memory", problem, columns))


def _told(name: str, problem: Problem, columns: Columns) -> Any:
    function = getattr(importlib.import_module("costmodels.training"), name, None)
    return () if function is None else function(problem, columns)
