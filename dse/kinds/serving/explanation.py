"""One serving plan taken apart: time per operator family of a step, memory, and what would relieve it.

Relief is measured, not guessed: the plan is evaluated again, in closed form, on a machine whose rates of one kind are doubled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodels.metrics import CostModel
from costmodels.serving.engine import engines
from costmodels.serving.pools import side
from costmodels.step_tables import Batch, parts_of
from dse.answers import PlanAnswer, answers
from dse.kinds.registry import find
from dse.kinds.serving.job import ServingJob
from dse.kinds.serving.plans import one_device, point, problem_of
from dse.tables import plan_page, table, words
from spaces.columns import Columns
from spaces.problem import Problem
from spaces.serving_space import PREFILL

_RELIEF: Mapping[str, tuple[str, ...]] = {
    "matrix units": ("device.matrix_flops.",),
    "memory bandwidth": ("device.memory_bandwidth",),
    "scale-up links": ("device.scale_up_bandwidth", "device.peer_bandwidth", "device.package_bandwidth"),
    "network": ("device.nic_bandwidth",),
    "host link": ("device.host_link_bandwidth",),
    "host": ("stack.host",),
}
"""Rates that are doubled (times that are halved) together; a trailing dot means every symbol that starts so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepParts:
    """One kind of step of one engine: what runs in it, and its seconds by operator family."""

    name: str
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A plan taken apart. `relief` is (what is doubled, TTFT then, TPOT then), over today's, best first."""

    answer: PlanAnswer
    steps: tuple[StepParts, ...]
    relief: tuple[tuple[str, float, float], ...]

    def __str__(self) -> str:
        return "\n\n".join([plan_page(self.answer), _steps_text(self.steps), _relief_text(self.relief)])


def explained(job: ServingJob, codes: Mapping[str, Any]) -> Explanation:
    """Take apart the plan with these codes (`device` by name)."""
    kind = find("serving")
    job = one_device(job, codes)
    problem, columns = problem_of(job), point(job, codes)
    closed, simulated = kind.models(job)
    answer = answers(kind, problem, columns, simulated.model.evaluate(problem, columns))[0]
    return Explanation(answer=answer, steps=_steps(problem, columns, answer), relief=_relief(closed.model, problem, columns))


def _steps(problem: Problem, columns: Columns, answer: PlanAnswer) -> tuple[StepParts, ...]:
    """A prefill step of one prompt and a decode step of the running batch, each on its own pool."""
    apart = answer.plan.get("mode") == "disaggregated"
    sides = [side(problem, columns, start) for start in (PREFILL, "")] if apart else [(problem, columns)] * 2
    found = []
    for (own, plan), decode in zip(sides, (False, True), strict=True):
        tables, engine = engines(own, plan)
        at = problem.at(columns)
        prompt, output = (float(np.asarray(at[name]).reshape(-1)[0]) for name in ("input_tokens", "output_tokens"))
        groups = float(answer.plan["data"]) * float(answer.plan["attention_data"])
        running = max(answer.figures["running_requests"].value / groups, 1.0)
        if decode:
            verified = running * (1 + float(answer.plan.get("speculation", 0)))
            batch = Batch(decode_requests=running, decode_kv=running * (prompt + output / 2), decode_tokens=verified)
            name = f"decode, {running:,.1f} requests of {prompt + output / 2:,.0f} cached tokens"
        else:
            budget = float(np.asarray(own.at(plan)["token_budget"]).reshape(-1)[0])
            chunk = min(prompt, budget)
            batch = Batch(prefill_queries=chunk, prefill_pairs=chunk**2 / 2, prompts_finished=1.0)
            name = f"prefill, a prompt of {prompt:,.0f} tokens" + (f", its first {chunk:,.0f}" if chunk < prompt else "")
        one = Batch(**{field.name: _one(getattr(batch, field.name)) for field in dataclasses.fields(batch)})
        parts = {part: float(seconds[0]) for part, seconds in parts_of(tables, engine, one).items()}
        found.append(StepParts(name=name, parts=parts))
    return tuple(found)


def _one(value: Any) -> Any:
    return None if value is None else np.array([float(value)])


def _relief(model: CostModel, problem: Problem, columns: Columns) -> tuple[tuple[str, float, float], ...]:
    """TTFT and TPOT with one kind of rate doubled, over today's, by the closed form."""
    today = model.evaluate(problem, columns).value
    found = []
    for what, symbols in _RELIEF.items():
        factor = 0.5 if what == "host" else 2.0
        changed = {
            name: value * factor
            for name, value in problem.scalars.items()
            if any(
                name.removeprefix(PREFILL) == symbol or (symbol.endswith(".") and name.removeprefix(PREFILL).startswith(symbol))
                for symbol in symbols
            )
        }
        then = model.evaluate(dataclasses.replace(problem, scalars={**problem.scalars, **changed}), columns).value
        first, token = (float(then[name][0] / today[name][0]) for name in ("ttft", "tpot"))
        if what != "host link" or (first, token) != (1.0, 1.0):  # most plans leave nothing on the host
            found.append((what, first, token))
    return tuple(sorted(found, key=lambda entry: entry[1] * entry[2]))


def _steps_text(steps: tuple[StepParts, ...]) -> str:
    blocks = []
    for step in steps:
        rows = [
            [words(name), f"{seconds * 1e3:,.3f}", f"{seconds / step.total * 100:.1f}"]
            for name, seconds in sorted(step.parts.items(), key=lambda part: -part[1])
            if seconds
        ]
        body = table(["operators", "time, ms", "% of step"], rows, left=frozenset({0}))
        blocks.append(f"A step of {step.name}: {step.total * 1e3:,.3f} ms\n{body}")
    return "\n\n".join(blocks)


def _relief_text(relief: tuple[tuple[str, float, float], ...]) -> str:
    lines = [
        f"  {what} twice as fast: TTFT {(first - 1) * 100:+.1f} %, TPOT {(token - 1) * 100:+.1f} %".replace("-", "−")
        for what, first, token in relief
    ]
    return "\n".join(["What would relieve it, on the machine (closed form):", *lines])
