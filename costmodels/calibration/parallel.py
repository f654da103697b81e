"""Whole training steps over several devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from costmodels.calibration.steps import SUITE as STEPS
from costmodels.calibration.suite import Cell, Row, Suite, Task


def tasks(small: bool) -> list[Task]:
    return []


def measure(bench: Any, key: Mapping[str, Cell]) -> Row:
    raise NotImplementedError


SUITE = Suite(name="parallel", key=STEPS.key, measured=STEPS.measured, share=0.65, tasks=tasks, measure=measure, needs_ranks=2)
