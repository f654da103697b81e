"""What no section of a hardware experiment can see alone: formulas, designs nobody can build, constraints that conflict."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from dse.kinds.hardware.designs import BadPlans, model_of, problem_of, space_of
from dse.kinds.hardware.job import LIMITED, HardwareJob, formulas_of, job_of
from dse.locations import Fault
from dse.measures import limit, measure, nearest
from search.conflicts import smallest_conflict
from search.constraint import Constraint
from spaces.hardware.formulas import BadFormulas

if TYPE_CHECKING:
    from dse.kinds.hardware.schema import File

LOOKED_AT = 20_000
"""Designs at most that are asked whether constraints conflict."""


def faults(file: File) -> Iterable[Fault]:
    """What no section can see alone: formulas, designs nobody can build, workloads without plans, constraints that conflict."""
    found = [*_formula_faults(file), *_workload_faults(file)]
    if not found:
        found = [*_design_faults(file)]
    if not found:
        found = [*_conflicts(file)]
    yield from found


def _formula_faults(file: File) -> Iterable[Fault]:
    try:
        formulas_of(file.formulas)
    except BadFormulas as error:
        for fault in error.faults:
            yield Fault(path=("formulas", fault.name), message=fault.message)


def _workload_faults(file: File) -> Iterable[Fault]:
    names: set[str] = set()
    for i, entry in enumerate(file.workloads):
        if entry.name in names:
            yield Fault(path=("workloads", i, "name"), message=f"{entry.name} is a workload already")
        names.add(entry.name)
        if entry.kind != "serving":
            continue
        asked = (entry.workload.concurrency, entry.workload.request_rate)
        if (asked[0] is None) == (asked[1] is None):
            yield Fault(path=("workloads", i, "workload"), message="say either concurrency or request_rate")
        for name, value in entry.limits.items():
            if name not in LIMITED:
                message = f"no limit is called {name!r}{nearest(name, LIMITED)}"
                yield Fault(path=("workloads", i, "limits", name), message=message)
                continue
            try:
                limit(name, value)
            except ValueError as error:
                yield Fault(path=("workloads", i, "limits", name), message=str(error))


def _design_faults(file: File) -> Iterable[Fault]:
    """Designs nobody can build: links that cannot connect the domain, and what else the base's columns refuse."""
    job = job_of(file)
    try:
        for batch in space_of(job).batches():
            file.base.columns({**job.fixed, **{name: batch[name] for name in job.design}}, job.formulas)
    except ValueError as error:
        yield Fault(path=("design",), message=str(error))


def _conflicts(file: File) -> Iterable[Fault]:
    """The smallest set of constraints that no design satisfies, as far as area, power and price can tell."""
    job = job_of(file)
    try:
        model = model_of(job)
    except BadPlans as error:
        at = [work.name for work in job.workloads].index(error.workload)
        yield Fault(path=("workloads", at), message=error.why)
        return
    limits = [Constraint(metric=entry.metric, limit=entry.value, upper=entry.at_most) for entry in file.constraints]
    places = [i for i, entry in enumerate(limits) if entry.metric in _KNOWN]
    if not places:
        return
    problem, rows = problem_of(job), []
    for batch in space_of(job).batches(LOOKED_AT):
        bound = model.bound(problem, batch)
        rows.append(np.stack([limits[i].violation(bound.value[limits[i].metric]) <= 0 for i in places], axis=1))
    holds = np.concatenate(rows)
    conflict = smallest_conflict(holds)
    if conflict is not None:
        chosen = [file.constraints[places[i]] for i in conflict]
        told = " and ".join(str(one) for one in chosen)
        rule = "is met by no design" if len(chosen) == 1 else "are met together by no design; each is met by some"
        best = _nearest_value(chosen[0].metric, job) if len(chosen) == 1 else ""
        yield Fault(path=("constraints", places[conflict[-1]]), message=f"{told} {rule}{best}")


_KNOWN = ("capital", "device_price", "hourly_price", "die_area", "design_power", "embodied_carbon", "sustained_clock")


def _nearest_value(metric: str, job: HardwareJob) -> str:
    """The range that the designs span."""
    spans = [model_of(job).bound(problem_of(job), batch).value[metric] for batch in space_of(job).batches(LOOKED_AT)]
    values = np.concatenate(spans)
    shown = measure(metric)
    return f"; designs range from {shown.show(values.min(), with_unit=True)} to {shown.show(values.max(), with_unit=True)}"
