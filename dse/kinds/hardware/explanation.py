"""One design taken apart: its best plans, what each objective leans on, the next bottleneck, where parameters stop to pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dse.answers import PlanAnswer, answers
from dse.kinds.hardware.designs import model_of, point, problem_of
from dse.kinds.hardware.job import HardwareJob
from dse.kinds.hardware.words import amount
from dse.kinds.registry import find
from dse.kinds.serving.words import plan_text as served_text
from dse.kinds.serving.words import spelled as served_spelled
from dse.kinds.training.words import plan_text
from dse.measures import MEASURES, measure
from dse.tables import plan_page, table
from search.codesign import MADE, SCORES, CodesignModel
from search.sensitivity import BEYOND, BreakEven, Elasticity, Figures, break_evens, elasticities, next_bottleneck
from spaces.columns import Columns, FloatArray
from spaces.hardware.accelerators import CATEGORIES, parameters
from spaces.plan import spell

METRICS = (*SCORES, "capital")
"""Metrics whose elasticities are shown."""
RESOURCES = (
    "memory_stacks",
    "stack_bandwidth",
    "clock",
    "cores",
    "scale_up_bandwidth",
    "scale_up_domain",
    "nic_bandwidth",
    "power",
)
"""Parameters that are perturbed beside those that vary, where the base has them."""
DOUBLED = ("scale_up_domain", "devices_per_node")
"""Sizes that ranks are dealt over evenly: they move by doubling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A design taken apart; `plans` are (workload, its best plan)."""

    answer: PlanAnswer
    plans: tuple[tuple[str, str], ...]
    elasticities: tuple[Elasticity, ...]
    bottleneck: str | None
    break_evens: tuple[BreakEven, ...]

    def __str__(self) -> str:
        told = "\n".join(f"  {name}: {plan}" for name, plan in self.plans)
        names = list(dict.fromkeys(e.parameter for e in self.elasticities))
        by = {(e.parameter, e.metric): e for e in self.elasticities}
        rows = [[name, *(f"{by[name, m].up:+.2f}" for m in METRICS)] for name in names]
        grid = table(["parameter, 1 % more", *(f"{measure(m).title}, %" for m in METRICS)], rows, left=frozenset({0}))
        limit = (
            f"Next bottleneck of performance: {self.bottleneck}" if self.bottleneck else "No single parameter makes it faster."
        )
        evens = "\n".join(f"  {sentence(even)}" for even in self.break_evens) or "  none within a factor of eight"
        return "\n\n".join(
            [plan_page(self.answer), f"Best plans:\n{told}", grid, limit, f"Where more stops to pay (performance):\n{evens}"]
        )


def sentence(even: BreakEven) -> str:
    """`memory beyond 6.1 TB/s buys nothing until scale_up_domain grows to 16`, or that no package can have more."""
    if even.beyond:
        return f"{even.parameter} cannot grow to {amount(even.parameter, even.value)}: such a package cannot be made or powered"
    head = f"{even.parameter} beyond {amount(even.parameter, even.value)} buys nothing"
    if even.other is None or even.at is None:
        return head
    return f"{head} until {even.other} grows to {amount(even.other, even.at)}"


def explained(job: HardwareJob, codes: Mapping[str, Any]) -> Explanation:
    """Take apart the design with these codes."""
    problem, columns, model = problem_of(job), point(job, codes), model_of(job)
    answer = answers(find("hardware"), problem, columns, model.evaluate(problem, columns))[0]
    around = Neighbourhood.of(job, columns)
    found = around.elasticities(METRICS)
    return Explanation(
        answer=answer,
        plans=best_plans_text(model, columns),
        elasticities=found,
        bottleneck=next_bottleneck(found, "performance", maximise=MEASURES["performance"].maximise),
        break_evens=around.break_evens("performance"),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Neighbourhood:
    """The designs around one: its numeric parameters `here`, those to perturb, how they move, and the figures of any design."""

    here: Mapping[str, float]
    names: Sequence[str]
    kinds: Mapping[str, str]
    figures: Figures

    @classmethod
    def of(cls, job: HardwareJob, columns: Columns) -> Neighbourhood:
        """Around the one design of `columns`."""
        here, names = _here(job, columns)
        kinds = {name: "double" if name in DOUBLED else "whole" for name in here if parameters()[name].whole}
        return cls(here=here, names=names, kinds=kinds, figures=_figures(model_of(job), columns, here))

    def elasticities(self, metrics: Sequence[str]) -> tuple[Elasticity, ...]:
        """Of each metric to each parameter."""
        return elasticities(self.figures, self.here, self.names, metrics, self.kinds)

    def break_evens(self, metric: str) -> tuple[BreakEven, ...]:
        """Where more of a parameter stops to pay in `metric`."""
        return break_evens(self.figures, self.here, self.names, metric, self.kinds, maximise=MEASURES[metric].maximise)


def _here(job: HardwareJob, columns: Columns) -> tuple[dict[str, float], list[str]]:
    """The design's numeric parameters, and those to perturb."""
    wanted = dict.fromkeys([*(name for name in job.design if name not in CATEGORIES), *RESOURCES])
    base = {**job.base.values, **job.fixed}
    here = {name: float(columns[name][0]) if name in columns else base[name] for name in wanted}
    return {name: value for name, value in here.items() if value > 0}, [name for name in wanted if here[name] > 0]


def _figures(model: CodesignModel, columns: Columns, here: Mapping[str, float]) -> Figures:
    """Metrics of designs that differ from one in some parameters."""
    names = {name: float(columns[name][0]) for name in columns.levels if name not in here}
    wide = CodesignModel(
        base=model.base, workloads=model.workloads, axes=(*names, *here), fixed=model.fixed, formulas=model.formulas
    )

    def figures(points: Mapping[str, FloatArray]) -> Mapping[str, FloatArray]:
        n = len(next(iter(points.values())))
        values = {name: np.full(n, value) for name, value in names.items()} | dict(points)
        found = wide.evaluate(model.workloads[0].problem, Columns.from_values(values))
        return {**found.value, BEYOND: np.maximum.reduce([found.violation[name] for name in MADE])}

    return figures


def best_plans_text(model: CodesignModel, columns: Columns) -> tuple[tuple[str, str], ...]:
    """The best plan of every workload in one line."""
    best = model.best(model.designs(columns))
    told = []
    for w in model.workloads:
        row = w.plans.row(int(best[w.name].plan[0]))
        if w.metric == "step_time":
            told.append((w.name, plan_text({name: spell(name, value) for name, value in row.items()})))
        else:
            told.append((w.name, served_text(served_spelled(w.problem, row))))
    return tuple(told)
