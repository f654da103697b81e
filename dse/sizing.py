"""`size`: the fewest accelerators (or dollars, or watts) that carry a rate under the limits of an experiment.

Every plan on at most so many devices is judged in closed form; those that may carry the rate are simulated from the least
upwards until one does. Then what the closed form passed over is proven not to (`dse.proof`), or found to be less after all.
Where none does, the highest rate that some plan carries is found, and what stops it.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dse.answers import PlanAnswer
from dse.asking import models_of, problem_of, space_of
from dse.experiment import Experiment, load
from dse.kinds.registry import find
from dse.measures import measure, nearest
from dse.proof import Proof, judged, proven
from dse.tables import breakdown, interval, lacking, place
from search.constraint import Constraint
from search.exact import search
from search.front import Objective, Points
from search.screening import RELAXED, Fidelity

SIZES: Mapping[str, str] = {
    "devices": "devices",
    "accelerators": "devices",
    "dollars": "price_per_hour",
    "price_per_hour": "price_per_hour",
    "watts": "power",
    "power": "power",
}
"""What may be made small, by the words people use."""

WITHIN = 0.95
"""Share of requests that must keep the `slo`, where no constraint says otherwise."""
LISTED = 400
"""Plans that are looked at from the least upwards."""
_CHUNK = 4
_STEPS = 9


class CannotSize(ValueError):
    """An experiment that has no size to find; the message says what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """The least plan that carries the rate, or None with the highest `reachable` rate (1/s) and the plan that comes closest.

    `beyond` says what stops the plan that is nearest just above the reachable rate. `looked` plans were judged in closed
    form, `simulated` by simulation, and `left` more that may carry the rate were not, for want of `search.simulate`. `proof`
    says what of the plans with less than the answer was ruled out, and how.
    """

    title: str
    objective: str
    rate: float
    answer: PlanAnswer | None
    closest: PlanAnswer | None
    reachable: float | None
    beyond: str
    looked: int
    simulated: int
    left: int
    proof: Proof | None = None

    @property
    def exit_code(self) -> int:
        """0; 2 when no plan carries the rate."""
        return 0 if self.answer is not None else 2

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "objective": self.objective,
            "request_rate": self.rate,
            "answer": None if self.answer is None else self.answer.to_json(),
            "closest": None if self.closest is None else self.closest.to_json(),
            "reachable_rate": self.reachable,
            "beyond": self.beyond,
            "looked": self.looked,
            "simulated": self.simulated,
            "left": self.left,
            "proof": None if self.proof is None else self.proof.to_json(),
        }

    def __str__(self) -> str:
        shown = measure(self.objective)
        tail = f"{self.looked:,} plans judged in closed form, {self.simulated:,} simulated from the least upwards."
        if self.answer is not None:
            tail += f" {self.proof or 'What is less was passed over in closed form, which is near and no proof.'}"
        if self.answer is not None:
            figures = [_figure(self.answer, name) for name in _SHOWN]
            need = f"{shown.title}: {shown.show(self.answer.figures[self.objective].value, with_unit=True)}"
            plan = f"{place(self.answer)}{self.answer.text}"
            told = [self.title, "", need, f"  {plan}", *(f"  {line}" for line in figures)]
            return "\n".join([*told, "", breakdown(self.answer), tail])
        of = f"{self.rate:,.4g} request{'' if self.rate == 1 else 's'}/s"
        lines = [self.title, "", f"No plan carries {of}."]
        if self.left:
            lines[-1] = f"None of the {self.simulated:,} plans simulated carries {of}."
            lines.append(f"{self.left:,} more may in closed form: raise search.simulate to look at them.")
        elif self.reachable is not None:
            lines.append(f"The highest rate carried within the limits: {self.reachable:,.4g} requests/s, in closed form.")
            lines.append(f"Just above it, the nearest plan: {self.beyond}.")
        elif self.closest is not None and self.closest.violation.get("memory", 0.0) > 0:
            lines.append("At no rate: none fits in the devices' memory.")
        else:
            lines.append("At no rate: the limits are missed even by a server that is all but idle.")
        if self.closest is not None:
            lines += ["The closest:", f"  {place(self.closest)}{self.closest.text}", f"  {lacking(self.closest)}"]
        return "\n".join([*lines, "", tail])


def _figure(answer: PlanAnswer, name: str) -> str:
    shown = measure(name)
    return f"{shown.title} {interval(answer.figures[name], shown)} {shown.unit}"


_SHOWN = ("ttft", "tpot", "tokens_per_second_per_device", "price_per_million_tokens")


def size(
    source: str | os.PathLike[str] | Mapping[str, Any],
    objective: str = "devices",
    rate: float | None = None,
    overrides: Sequence[str] = (),
) -> Sizing:
    """The least `objective` (devices, dollars or watts) at which some plan carries `rate` requests a second, or the file's.

    The file's number of devices is the most there may be. Raises ExperimentError, CannotSize, OSError.
    """
    if objective not in SIZES:
        raise CannotSize(f"--objective: nothing is called {objective!r}{nearest(objective, tuple(SIZES))}")
    if rate is not None and not 0 < rate < math.inf:
        raise CannotSize(f"--rate: expected requests a second above 0, got {rate:g}")
    experiment = _sizable(load(source, overrides), rate)
    problem, space = problem_of(experiment), space_of(experiment)
    closed, simulated = models_of(experiment)
    wanted = [Objective(name=name, metric=name) for name in (SIZES[objective], "tpot", "ttft")]
    limits = [Constraint(metric=limit.metric, limit=limit.value, upper=limit.at_most) for limit in experiment.limits]
    relaxed = [limit if limit.metric in simulated.agrees else _relaxed(limit) for limit in limits]
    found = search(space, closed.model, problem, wanted, relaxed, top=LISTED, sample=0, seed=experiment.seed)
    seen, fits, near, proof = 0, None, None, None
    for points in _chunks(found.top[SIZES[objective]], experiment.job.simulate):
        told = judged(simulated.model, problem, points.columns, limits)
        seen += len(told)
        fits = next((answer for answer in told if answer.feasible), None)
        near = min([*told, *([near] if near else [])], key=_lack)
        if fits is not None:
            fits, proof = proven(experiment, problem, fits, points.columns, SIZES[objective])
            break
    if fits is None and near is None and found.closest is not None:
        near = judged(closed.model, problem, found.closest.points.columns, limits)[0]
    left = max(found.feasible - seen, 0) if fits is None else 0
    reachable, beyond = (None, "") if fits is not None or left else _reachable(experiment, closed, limits)
    return Sizing(
        title=find("serving").title(experiment.job),
        objective=SIZES[objective],
        rate=experiment.job.traffic.mean_rate,
        answer=fits,
        closest=None if fits is not None else near,
        reachable=reachable,
        beyond=beyond,
        looked=found.certificate.space,
        simulated=seen,
        left=left,
        proof=proof,
    )


def _sizable(experiment: Experiment[Any], rate: float | None) -> Experiment[Any]:
    """The experiment with its devices as the most there may be, at the rate asked for, and its slo as a constraint."""
    from dse.schema.fields import Limit

    if experiment.kind != "serving":
        raise CannotSize(f"only serving has a size to find, and this is a {experiment.kind} experiment")
    job = experiment.job
    if job.traffic.concurrency:
        raise CannotSize("a closed loop brings as many requests as are served: give workload.request_rate or --rate")
    if job.traffic.together:
        raise CannotSize("all requests of the trace come at once, so that it has no rate: give one whose arrivals differ")
    if rate is not None:
        job = dataclasses.replace(job, traffic=dataclasses.replace(job.traffic, rate=rate))
    limits = list(experiment.limits)
    if job.statistics.objective and not any(limit.metric == "slo_attainment" for limit in limits):
        limits.append(Limit(metric="slo_attainment", at_most=False, value=WITHIN))
    if not limits:
        raise CannotSize("nothing says how fast answers must come: give constraints, or slo: {ttft: 1 s, tpot: 50 ms}")
    pools = job.pools and tuple(dataclasses.replace(pool, at_most=True) for pool in job.pools)
    job = dataclasses.replace(job, at_most=job.count, pools=pools)
    return dataclasses.replace(experiment, job=job, limits=tuple(limits))


def _relaxed(limit: Constraint) -> Constraint:
    factor = 1.0 + RELAXED if limit.upper else 1.0 / (1.0 + RELAXED)
    return dataclasses.replace(limit, limit=limit.limit * factor)


def _chunks(points: Points, most: int) -> Iterator[Points]:
    """The points in order, a few at a time, as many as may be simulated."""
    for start in range(0, min(len(points), most), _CHUNK):
        yield points.take(np.arange(start, min(start + _CHUNK, len(points), most)))


def _lack(answer: PlanAnswer) -> float:
    return max(answer.violation.values(), default=0.0)


def _reachable(experiment: Experiment[Any], closed: Fidelity, limits: Sequence[Constraint]) -> tuple[float | None, str]:
    """The highest rate that some plan carries in closed form, by bisection, and what the nearest plan breaks just above it.

    None where not even a trickle is carried.
    """
    space = space_of(experiment)
    high = float(experiment.job.traffic.mean_rate)
    beyond = ""

    def carried(rate: float) -> bool:
        nonlocal beyond
        traffic = dataclasses.replace(experiment.job.traffic, rate=rate)
        problem = problem_of(dataclasses.replace(experiment, job=dataclasses.replace(experiment.job, traffic=traffic)))
        objective = [Objective(name="tpot", metric="tpot")]
        found = search(space, closed.model, problem, objective, limits, top=1, sample=0)
        if not found.feasible and found.closest is not None:
            beyond = lacking(judged(closed.model, problem, found.closest.points.columns, limits)[0])
        return bool(found.feasible)

    low = high / 1000
    if not carried(low):
        return None, beyond
    for _ in range(_STEPS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if carried(middle) else (low, middle)
    return low, beyond
