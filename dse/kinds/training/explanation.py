"""One training plan taken apart. Time per operator beside its roofline, memory per stage, and what would relieve it.

Relief is measured, not guessed: the plan is evaluated again on a machine whose every rate of one kind is doubled, and every
plan that differs in one choice is evaluated too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodels.explanation import OperatorTime, operator_times, stage_memory
from costmodels.training import TrainingModel
from dse.answers import PlanAnswer, answers
from dse.calibration import UncertainShapes, doubts
from dse.kinds.registry import find
from dse.kinds.training.job import TrainingJob
from dse.kinds.training.plans import one_device, point, problem_of, space_around
from dse.measures import measure, significant
from dse.tables import lacking, plan_page, table, words
from spaces.columns import Columns
from spaces.plan import PLAN_SYMBOLS
from spaces.problem import Problem

LISTED = 25
"""Operators a page lists."""

_RELIEF: Mapping[str, tuple[str, ...]] = {
    "matrix units": ("device.matrix_flops.",),
    "memory bandwidth": ("device.memory_bandwidth",),
    "scale-up links": ("device.scale_up_bandwidth", "device.peer_bandwidth", "device.package_bandwidth"),
    "network": ("device.nic_bandwidth",),
    "host link": ("device.host_link_bandwidth",),
}
"""Rates that are doubled together, by what people call them; a trailing dot means every symbol that starts so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A plan taken apart.

    `doubts` are the kernels whose own intervals are widest, `relief` is (what is doubled, step time then) and `moves` (what
    changes, the plan then), each best first.
    """

    answer: PlanAnswer
    operators: tuple[OperatorTime, ...]
    doubts: UncertainShapes
    relief: tuple[tuple[str, float], ...]
    moves: tuple[tuple[str, PlanAnswer], ...]

    def __str__(self) -> str:
        blocks = [plan_page(self.answer)]
        if self.answer.stages:
            blocks.append(_stages_text(self.answer))
        if self.operators:
            blocks.append(_operators_text(self.operators, self.answer.figures["step_time"].value))
        return "\n\n".join([*blocks, str(self.doubts), _relief_text(self), _moves_text(self)])


def explained(job: TrainingJob, codes: Mapping[str, Any]) -> Explanation:
    """Take apart the plan with these codes (`device` by name)."""
    model = TrainingModel()
    job = one_device(job, codes.get("device"))
    problem, columns = problem_of(job), point(job, codes)
    answer = answers(find("training"), problem, columns, model.evaluate(problem, columns))[0]
    answer = dataclasses.replace(answer, stages=tuple(stage_memory(problem, columns)))
    shapes = doubts(problem, columns, job.devices[0].name)
    evidence = {name: one.evidence for one in shapes for name in one.shape.operators}
    operators = [
        dataclasses.replace(op, evidence=evidence.get(op.name, op.evidence)) for op in operator_times(problem, columns)
    ]
    return Explanation(
        answer=answer,
        operators=tuple(sorted(operators, key=lambda row: -row.time)),
        doubts=UncertainShapes(title="What its kernels rest on:", shapes=shapes, asked=5),
        relief=_relief(model, problem, columns),
        moves=_moves(model, job, problem, answer, columns),
    )


def _relief(model: TrainingModel, problem: Problem, columns: Columns) -> tuple[tuple[str, float], ...]:
    """Step time with one kind of rate doubled, best first."""
    found = []
    for what, symbols in _RELIEF.items():
        doubled = {
            name: value * 2
            for name, value in problem.scalars.items()
            if any(name == symbol or (symbol.endswith(".") and name.startswith(symbol)) for symbol in symbols)
        }
        faster = dataclasses.replace(problem, scalars={**problem.scalars, **doubled})
        found.append((what, float(model.evaluate(faster, columns).value["step_time"][0])))
    return tuple(sorted(found, key=lambda entry: entry[1]))


def _moves(
    model: TrainingModel, job: TrainingJob, problem: Problem, answer: PlanAnswer, columns: Columns
) -> tuple[tuple[str, PlanAnswer], ...]:
    """Plans that differ in one choice (and what follows from it) and are better: faster, or nearer to fitting."""
    here = columns.row(0)
    found: dict[str, PlanAnswer] = {}
    for axis in PLAN_SYMBOLS:
        for batch in space_around(job, here, axis).batches():
            metrics = model.evaluate(problem, batch)
            excess = np.maximum(metrics.violation["memory"], 0.0)
            best = int(np.lexsort((metrics.value["step_time"], excess))[0])
            near = answers(find("training"), problem, batch.take(np.array([best])), metrics.take(np.array([best])))[0]
            if _key(near) < _key(answer):
                found.setdefault(_difference(answer, near), near)
            break  # one axis opened: the first batch holds all there is
    return tuple(sorted(found.items(), key=lambda entry: _key(entry[1]))[:5])


def _key(answer: PlanAnswer) -> tuple[float, float]:
    return max(answer.violation.get("memory", 0.0), 0.0), answer.figures["step_time"].value


def _difference(here: PlanAnswer, there: PlanAnswer) -> str:
    """`micro_batch 1 → 2, data 4 → 2`."""
    changed = [s for s in there.plan if s != "shard_degree" and there.plan[s] != here.plan.get(s)]
    return ", ".join(f"{words(s)} {here.plan.get(s)} → {there.plan[s]}" for s in changed)


def _stages_text(answer: PlanAnswer) -> str:
    """Memory of each distinct stage, the parts as letters of a bar."""
    memory = measure("memory")
    parts = sorted({name for _, stage in answer.stages for name, value in stage.items() if value > 0})
    marks = dict(zip(parts, "▓█░▒▞▚▤▥▦▧", strict=False))
    longest = max(sum(stage.values()) for _, stage in answer.stages) or 1.0
    names = max(len(name) for name, _ in answer.stages)
    lines = []
    for name, stage in answer.stages:
        bar = "".join(marks.get(part, "▨") * round(stage.get(part, 0.0) / longest * 60) for part in parts)
        lines.append(f"  {name.ljust(names)}  {memory.show(sum(stage.values())).rjust(7)} GiB  {bar}")
    key = "  ".join(f"{mark} {words(part)}" for part, mark in marks.items())
    return "\n".join(["Memory per stage:", *lines, f"  {key}"])


def _operators_text(operators: Sequence[OperatorTime], step: float) -> str:
    """The operators that take longest, each beside its bound."""
    rows = [
        [
            op.name,
            op.kind,
            op.phase,
            f"{op.calls:,.0f}",
            significant(op.time),
            f"{op.time / step * 100:.1f}",
            significant(op.roofline_time),
            f"{op.roofline_time / op.time * 100:.0f}" if op.time else "",
            op.evidence,
        ]
        for op in operators[:LISTED]
    ]
    headings = ["operator", "kind", "phase", "calls", "time, s", "% of step", "roofline, s", "% of bound", "evidence"]
    rest = len(operators) - LISTED
    tail = f"\n  … and {rest} more" if rest > 0 else ""
    return "Time per operator on the busiest device, a step:\n" + table(headings, rows, left=frozenset({0, 1, 2, 8})) + tail


def _relief_text(explanation: Explanation) -> str:
    step = explanation.answer.figures["step_time"].value
    lines = [f"  {what} twice as fast: step {_percent(time / step)}" for what, time in explanation.relief]
    return "\n".join(["What would relieve it, on the machine:", *lines])


def _percent(ratio: float) -> str:
    """`−3.2 %` for 0.968."""
    if abs(ratio - 1) < 5e-4:
        return "unchanged"
    return f"{(ratio - 1) * 100:+.1f} %".replace("-", "−")


def _moves_text(explanation: Explanation) -> str:
    if not explanation.moves:
        return "What would relieve it, in the plan: nothing; no single choice makes it better."
    step = explanation.answer.figures["step_time"].value
    lines = []
    for said, answer in explanation.moves:
        gain = f"step {_percent(answer.figures['step_time'].value / step)}"
        memory = measure("memory").show(answer.figures["memory"].value, with_unit=True)
        fits = "" if answer.feasible else f"; still lacks {lacking(answer)}"
        lines.append(f"  {said}: {gain}, {memory}{fits}")
    return "\n".join(["What would relieve it, in the plan:", *lines])
