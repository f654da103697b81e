"""That nothing less carries a rate: every smaller plan ruled out for its memory, for want of time, or by simulation.

Devices and dollars are known of a plan before it runs, so plans with less than an answer can be listed. Memory is counted
exactly; `costmodels.serving.overload` proves that a plan has no time for the requests; what neither rules out is simulated on
the same requests as the answer. A smaller plan that keeps the limits after all becomes the answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodels.metrics import CostModel
from costmodels.serving.overload import Deadlines, cannot_keep
from costmodels.serving.simulated import SimulatedServing
from costmodels.serving.statistics import percentile_of
from dse.answers import PlanAnswer, answers
from dse.asking import models_of, space_of
from dse.experiment import Experiment
from dse.kinds.registry import find
from search.constraint import Constraint
from spaces.columns import Columns, FloatArray
from spaces.problem import Problem
from spaces.traffic import requests

KNOWN = ("devices", "price_per_hour")
"""What is known of a plan before it runs; watts are drawn, and so are no order in which to look."""
SIMULATED = 400
"""Plans that a proof may simulate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Of the `less` plans with less than the answer: too large for the memory, proven to lack the time, simulated and failed.

    What is left of them was not looked at beyond the closed form.
    """

    less: int
    memory: int
    time: int
    simulated: int

    @property
    def left(self) -> int:
        """Plans that the closed form alone passed over."""
        return self.less - self.memory - self.time - self.simulated

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**dataclasses.asdict(self), "left": self.left, "complete": not self.left}

    def __str__(self) -> str:
        if not self.less:
            return "Proven: no plan has less."
        how = f"{self.memory:,} do not fit, {self.time:,} lack the time however scheduled, {self.simulated:,} fail simulated"
        if not self.left:
            return f"Proven: none of the {self.less:,} plans with less does ({how})."
        told = f"Of {self.less:,} plans with less, {self.left:,} were passed over in closed form, which is near and no proof"
        return f"{told} ({how})."


def judged(model: CostModel, problem: Problem, columns: Columns, limits: Sequence[Constraint]) -> tuple[PlanAnswer, ...]:
    """Plans by a model, with the violations of the experiment's own limits."""
    metrics = model.evaluate(problem, columns)
    own = {limit.name: limit.violation(metrics.value[limit.metric]) for limit in limits}
    metrics = dataclasses.replace(metrics, violation={**metrics.violation, **own})
    return answers(find("serving"), problem, columns, metrics)


def proven(
    experiment: Experiment[Any], problem: Problem, answer: PlanAnswer, among: Columns, objective: str
) -> tuple[PlanAnswer, Proof | None]:
    """The answer, or a smaller one that was found on the way, and the proof; None where the objective is not known beforehand.

    `among` are the plans that the answer was simulated with: all see as many requests as they did.
    """
    closed, simulated = (one.model for one in models_of(experiment))
    if objective not in KNOWN or not isinstance(simulated, SimulatedServing):
        return answer, None
    traffic = simulated.traffic
    if traffic.trace is None:
        traffic = dataclasses.replace(traffic, count=simulated.count(simulated.closed.evaluate(problem, among)))
    model = dataclasses.replace(simulated, traffic=traffic)
    limits = [Constraint(metric=limit.metric, limit=limit.value, upper=limit.at_most) for limit in experiment.limits]
    rows, size = _fitting(experiment, problem, closed, objective)
    asked = requests(traffic, traffic.count, model.seed)
    steady = traffic.trace is None
    late = cannot_keep(problem, rows, asked, _deadlines(model, experiment), whole=not steady)
    order = np.lexsort((size,))
    order = order[~late[order]]
    ran = 0
    while ran < SIMULATED:
        below = order[size[order] < answer.figures[objective].value * (1 - 1e-9)]
        if ran >= len(below):
            break
        told = judged(model, problem, rows.take(below[ran : ran + 1]), limits)
        ran += 1
        if told[0].feasible:
            answer = told[0]
    least = answer.figures[objective].value * (1 - 1e-9)
    every = _less(experiment, problem, closed, objective, least)
    fits = int(np.count_nonzero(size < least))
    lack = int(np.count_nonzero((size < least) & late))
    return answer, Proof(less=every, memory=every - fits, time=lack, simulated=min(ran, fits - lack))


def _fitting(experiment: Experiment[Any], problem: Problem, closed: CostModel, objective: str) -> tuple[Columns, FloatArray]:
    """The plans that fit in memory, and what each takes of the objective."""
    kept, sizes = [], []
    for batch in space_of(experiment).batches():
        fits = closed.bound(problem, batch).violation["memory"] <= 0
        some = batch.take(np.flatnonzero(fits))
        kept.append(some)
        sizes.append(_sizes(problem, closed, objective, some))
    codes = {axis: np.concatenate([one.codes[axis] for one in kept]) for axis in kept[0].codes}
    size = np.concatenate(sizes)
    return Columns(n=len(size), codes=codes, levels=kept[0].levels), size


def _sizes(problem: Problem, closed: CostModel, objective: str, batch: Columns) -> FloatArray:
    if objective == "devices":
        return np.broadcast_to(np.asarray(problem.at(batch)["devices"], np.float64), (batch.n,))
    return closed.evaluate(problem, batch).value[objective]


def _less(experiment: Experiment[Any], problem: Problem, closed: CostModel, objective: str, least: float) -> int:
    """Plans of the space that take less than `least`."""
    return sum(
        int(np.count_nonzero(_sizes(problem, closed, objective, batch) < least)) for batch in space_of(experiment).batches()
    )


def _deadlines(model: SimulatedServing, experiment: Experiment[Any]) -> Deadlines:
    """What requests must keep by the limits: the shares that percentiles and attainment ask for, together."""
    bounds = {"ttft": np.inf, "tpot": np.inf, "request_latency": np.inf}
    missed, mean = 0.0, np.inf
    for limit in experiment.limits:
        if limit.metric == "slo_attainment" and not limit.at_most:
            own = (model.asked.ttft, model.asked.tpot, model.asked.latency)
            bounds = {name: min(bound, mine) for (name, bound), mine in zip(bounds.items(), own, strict=True)}
            missed += 1.0 - limit.value
        elif limit.metric == "tpot" and limit.at_most:
            mean = min(mean, limit.value)
        elif limit.metric in model.asked.percentiles and limit.at_most and percentile_of(limit.metric)[0] in bounds:
            name, q = percentile_of(limit.metric)
            bounds[name] = min(bounds[name], limit.value)
            missed += 1.0 - q / 100.0
    share = max(1.0 - missed, 0.0) if min(bounds.values()) < np.inf else 0.0
    return Deadlines(
        ttft=bounds["ttft"], tpot=bounds["tpot"], latency=bounds["request_latency"], share=share, mean_tpot=mean
    )
