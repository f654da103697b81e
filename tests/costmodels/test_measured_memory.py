"""Peak memory of every step that was measured, against what is counted for it. Nothing here was fitted on a row."""

from __future__ import annotations

from collections import defaultdict
from statistics import median

import pytest

from costmodels.measured_steps import MeasuredStep, measured_steps
from costmodels.training import TrainingModel
from spaces.columns import Columns

pytestmark = pytest.mark.slow

STEPS = [step for step in measured_steps() if step.peak]
BELOW = 0.02
"""A prediction this far below the truth is a plan that does not fit."""
ABOVE = 0.03
Errors = dict[str, dict[str, float]]


def way(step: MeasuredStep) -> str:
    """Rows that ran the same code."""
    return " ".join((step.kind, step.mode, step.optimizer, "recomputed" if step.plan["recompute"] else "kept"))


def error(step: MeasuredStep) -> float:
    none = Columns(n=1, codes={}, levels={})
    return float(TrainingModel().bound(step.problem(), none).value["peak_memory"][0]) / step.peak - 1.0


WAYS = sorted({way(step) for step in STEPS})


@pytest.fixture(scope="module")
def errors() -> Errors:
    found: Errors = defaultdict(dict)
    for step in STEPS:
        found[way(step)][f"line {step.line}, {step.device}: {step.shape} {', '.join(step.unusual)}"] = error(step)
    return found


def test_there_are_measured_steps_of_every_kind() -> None:
    assert len(STEPS) > 300
    assert {step.kind for step in STEPS} == {"one", "ddp", "fsdp", "tensor", "pipeline"}


@pytest.mark.parametrize("chosen", WAYS)
def test_a_device_holds_what_is_counted(errors: Errors, chosen: str) -> None:
    assert median(map(abs, errors[chosen].values())) <= 0.01
    off = {name: f"{100 * e:.2f} %" for name, e in errors[chosen].items() if not -BELOW <= e <= ABOVE}
    assert not off, f"too far from the measured peak: {off}"
