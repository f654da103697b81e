"""Errors of whole training steps, architectures left out: `python -m benchmarks.steps [--json] [--write] [--constants]`.

Every measured step that a stack describes (costmodels/data/measurements) is predicted with the stack's constants fitted on the
other architectures' steps; kernels come from the kernel models, which know no step. Steps that wait for the processor are
listed apart. `shipped` uses the constants in costmodels/data, which are fitted on all architectures; `--constants` prints
what the fit over all of them gives.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from costmodels.measured_steps import MeasuredStep, measured_steps
from costmodels.training import TrainingModel
from spaces.columns import Columns, FloatArray

PAGE = Path(__file__).parent.parent / "docs" / "steps.md"
CONSTANTS = (
    *("stack.host_per_operator", "stack.host_per_checkpoint", "stack.host_per_collective", "stack.host_per_unit"),
    "stack.untouched",
    *("stack.contention", "stack.bucket_bytes.replicated", "stack.bucket_bytes.sharded", "stack.turn_passes"),
    "kernel.pointwise.column_sum",
)
"""What whole steps told: everything else is counted, or measured kernel by kernel."""
_OF_GROUPS = {
    "stack.host_per_collective": ("tensor",),
    "stack.contention": ("ddp", "fsdp"),
    "stack.bucket_bytes.replicated": ("ddp",),
    "stack.bucket_bytes.sharded": ("fsdp",),
    "stack.turn_passes": ("tensor",),
}
"""Kinds of parallelism that a constant is about; the others' steps do not feel it."""
FOLDS = 8
_BUMP = 0.05  # relative change of a constant, to see what a step makes of it
_HELD = 0.02  # log error that a constant twice or half as large must save, over all steps, to be worth it
Line: TypeAlias = dict[str, str | int | float]


def seconds(step: MeasuredStep, changes: Mapping[str, float] | None = None) -> float:
    """Predicted seconds of a step, some constants multiplied."""
    problem = step.problem()
    values = {"micro_batch": np.array([step.plan["micro_batch"]])}
    values |= {name: np.array([problem.scalars[name] * factor]) for name, factor in (changes or {}).items()}
    return float(TrainingModel().evaluate(problem, Columns.from_values(values)).value["step_time"][0])


def responses(steps: Sequence[MeasuredStep]) -> tuple[FloatArray, FloatArray]:
    """Predicted seconds (n,), and their change with the logarithm of each constant (n, constants)."""
    base = np.array([seconds(step) for step in steps])
    slopes = np.zeros((len(steps), len(CONSTANTS)))
    for j, name in enumerate(CONSTANTS):
        for i, step in enumerate(steps):
            if step.kind in _OF_GROUPS.get(name, (step.kind,)):
                slopes[i, j] = (seconds(step, {name: 1.0 + _BUMP}) - base[i]) / np.log1p(_BUMP)
    return base, slopes


def fitted(base: FloatArray, slopes: FloatArray, time: FloatArray) -> FloatArray:
    """Log factors on the constants that fit the measured times best, large errors counting linearly."""

    def error(logs: FloatArray) -> FloatArray:
        predicted = np.maximum(base + slopes @ np.expm1(logs), 0.1 * base)
        return np.concatenate([np.log(predicted / time), _HELD * logs])

    found = least_squares(error, np.zeros(slopes.shape[1]), bounds=(-1.0, 1.0), loss="soft_l1", f_scale=0.03)
    return np.asarray(found.x, np.float64)


def left_out(steps: Sequence[MeasuredStep], base: FloatArray, slopes: FloatArray, time: FloatArray) -> FloatArray:
    """Predicted seconds of every step by constants fitted without its architecture, on whatever device; shape (n,)."""
    shapes = sorted({step.shape for step in steps})
    turn = np.random.default_rng(0).permutation(len(shapes)) % FOLDS
    fold = np.array([turn[shapes.index(step.shape)] for step in steps])
    predicted = np.zeros(len(steps))
    for own in range(FOLDS):
        logs = fitted(base[fold != own], slopes[fold != own], time[fold != own])
        predicted[fold == own] = base[fold == own] + slopes[fold == own] @ np.expm1(logs)
    return predicted


def lines(steps: Sequence[MeasuredStep], time: FloatArray, held: FloatArray, shipped: FloatArray) -> list[Line]:
    """One line a device, kind of parallelism, mode, and what the step waits for; percent."""
    groups: dict[tuple[str, str, str, str], list[int]] = {}
    for i, step in enumerate(steps):
        groups.setdefault((step.device, step.kind, step.mode, "processor" if step.host_bound else "device"), []).append(i)
    return [_line(key, np.array(rows), time, held, shipped) for key, rows in sorted(groups.items())]


def _line(
    key: tuple[str, str, str, str], rows: NDArray[np.int64], time: FloatArray, held: FloatArray, shipped: FloatArray
) -> Line:
    error = 100.0 * (held[rows] / time[rows] - 1.0)
    own = 100.0 * np.abs(shipped[rows] / time[rows] - 1.0)
    figures = {
        "median": np.median(np.abs(error)),
        "mean": np.abs(error).mean(),
        "p90": np.quantile(np.abs(error), 0.9),
        "bias": np.median(error),
        "shipped median": np.median(own),
        "shipped p90": np.quantile(own, 0.9),
    }
    named = dict(zip(("device", "parallel", "mode", "waits for"), key, strict=True))
    return {**named, "steps": len(rows), **{name: round(float(value), 2) for name, value in figures.items()}}


def table(found: Sequence[Line]) -> str:
    """Markdown."""
    names = list(found[0])
    rows = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    return "\n".join([*rows, *(f"| {' | '.join(str(line[name]) for name in names)} |" for line in found)]) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the lines as JSON")
    parser.add_argument("--write", action="store_true", help=f"write docs/{PAGE.name}")
    parser.add_argument("--constants", action="store_true", help="print the constants that all steps together give")
    chosen = parser.parse_args()
    steps = [step for step in measured_steps() if step.usual]
    time = np.array([step.time for step in steps])
    base, slopes = responses(steps)
    if chosen.constants:
        factors = np.exp(fitted(base, slopes, time))
        for name, factor in zip(CONSTANTS, factors, strict=True):
            print(f"{name}: {steps[0].problem().scalars[name] * factor:.4g} ({factor:.2f} of what is shipped)")
        return
    found = lines(steps, time, left_out(steps, base, slopes, time), base)
    if chosen.write:
        head = "# Whole training steps, architectures left out\n\nWritten by `python -m benchmarks.steps --write`. "
        head += "Percent of |predicted / measured − 1| with constants fitted on the other architectures' steps; `shipped` with "
        head += "those in the project's data, which all architectures gave. Steps that wait for the processor are apart.\n\n"
        PAGE.write_text(head + table(found), encoding="utf-8")
    print(json.dumps(found) if chosen.json else table(found))


if __name__ == "__main__":
    main()
