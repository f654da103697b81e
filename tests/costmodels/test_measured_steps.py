"""Measured steps as questions: every row is read, and the question is the one the row answers."""

from __future__ import annotations

import csv

import numpy as np

from costmodels.measured_steps import measured_steps
from costmodels.measurements import ROOT
from costmodels.training import TrainingModel
from spaces.columns import Columns


def test_every_row_on_a_catalogued_device_is_a_step_with_the_parameters_it_reports() -> None:
    """The model built from a row's dimensions has as many parameters as PyTorch counted (one device, nothing sharded)."""
    rows = {}
    for path in (*ROOT.glob("*/steps.csv"), *ROOT.glob("*/parallel.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            rows |= {(path.stem, row["gpu"], line): row for line, row in enumerate(csv.DictReader(file), start=2)}
    steps = measured_steps()
    assert len(steps) == len(rows)
    for step in steps:
        if step.kind in ("one", "ddp"):
            row = rows["steps" if step.kind == "one" else "parallel", step.device, step.line]
            assert step.problem().scalars["parameters"] == int(row["parameters"]), row


def test_a_step_without_a_host_is_no_slower_on_paper_than_with_one() -> None:
    model, asked = TrainingModel(), Columns.from_values({"recompute_layers": np.zeros(1, np.int64)})
    graphs = [step for step in measured_steps() if step.mode == "graph"]
    assert graphs
    for step in graphs:
        eager = next(
            s for s in measured_steps() if s.mode == "eager" and s.usual and (s.shape, s.plan) == (step.shape, step.plan)
        )
        seconds = [float(model.evaluate(s.problem(), asked).value["step_time"][0]) for s in (step, eager)]
        assert seconds[0] <= seconds[1]


def test_what_no_stack_describes_is_named() -> None:
    steps = measured_steps()
    assert any(step.usual for step in steps)
    assert any("precision amp" in step.unusual for step in steps)
