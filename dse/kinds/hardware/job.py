"""What a hardware experiment asks, checked: a part, what may change about it, and the work it is judged by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from dse.locations import Fault
from dse.measures import limit, measure, nearest
from search.conflicts import smallest_conflict
from search.constraint import Constraint
from spaces.architecture import Architecture
from spaces.hardware import Accelerator
from spaces.hardware.accelerators import derived_formulas, parameter_units
from spaces.hardware.formulas import BadFormulas, Formula, Formulas, check_formulas

if TYPE_CHECKING:
    from dse.kinds.hardware.schema import File, FormulaSection

LIMITED = ("tpot", "ttft", "request_latency")
"""Metrics that a serving workload may limit."""
LOOKED_AT = 20_000
"""Designs at most that are asked whether constraints conflict."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """One workload: a model, devices, what is asked of them, and the axes that are restricted; one of `models` like it."""

    name: str
    kind: str
    architecture: Architecture
    devices: int
    weight: float
    fixed: Mapping[str, float]
    stack: str
    options: Mapping[str, tuple[float, ...]]
    limits: Mapping[str, float]
    models: int = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HardwareJob:
    """A part, the levels of each parameter that varies, those that are the same in every design, formulas, and the work."""

    base: Accelerator
    design: Mapping[str, tuple[float, ...]]
    fixed: Mapping[str, float]
    formulas: Formulas
    workloads: tuple[Work, ...]


def job_of(file: File) -> HardwareJob:
    """The job that checked sections describe."""
    varied = {name: levels for name, levels in file.design.items() if len(levels) > 1}
    varied = varied or dict(list(file.design.items())[:1])  # one design alone is a space of one
    return HardwareJob(
        base=file.base,
        design=MappingProxyType(varied),
        fixed=MappingProxyType({name: levels[0] for name, levels in file.design.items() if name not in varied}),
        formulas=_formulas(file.formulas),
        workloads=tuple(_work(entry) for entry in file.workloads),
    )


def default_objectives(_: File) -> tuple[str, ...]:
    """What is looked for when the file does not say."""
    return ("performance_per_dollar", "performance_per_watt", "capital")


def resolved(_: File, value: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    """Everything was given by name already."""
    return {}


def _work(entry: Any) -> Work:
    fixed = {name: float(value) for name, value in entry.workload.given().items() if value is not None}
    if entry.kind == "training":
        options = {} if entry.space is None else {axis: tuple(values) for axis, values in entry.space.given().items()}
        limits: dict[str, float] = {}
    else:
        options = {axis: tuple(values) for axis, values in entry.space.items()}
        limits = {name: limit(name, value) for name, value in entry.limits.items()}
        fixed = {"concurrency": 0.0, "request_rate": 0.0} | fixed
    return Work(
        name=entry.name,
        kind=entry.kind,
        architecture=entry.model,
        devices=entry.devices,
        weight=entry.weight,
        fixed=MappingProxyType(fixed),
        stack=entry.stack,
        options=MappingProxyType(options),
        limits=MappingProxyType(limits),
        models=1 if entry.kind == "training" else entry.models,
    )


def _formulas(given: Mapping[str, FormulaSection]) -> Formulas:
    own = {name: Formula(text=section.formula, unit=section.unit) for name, section in given.items()}
    return check_formulas(derived_formulas() | own, parameter_units())


# --- what no section can see alone ------------------------------------------------------------------------------------------


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
        _formulas(file.formulas)
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
    from dse.kinds.hardware.designs import space_of

    job = job_of(file)
    try:
        for batch in space_of(job).batches():
            file.base.columns({**job.fixed, **{name: batch[name] for name in job.design}}, job.formulas)
    except ValueError as error:
        yield Fault(path=("design",), message=str(error))


def _conflicts(file: File) -> Iterable[Fault]:
    """The smallest set of constraints that no design satisfies, as far as area, power and price can tell."""
    from dse.kinds.hardware.designs import BadPlans, model_of, problem_of, space_of

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
    from dse.kinds.hardware.designs import model_of, problem_of, space_of

    spans = [model_of(job).bound(problem_of(job), batch).value[metric] for batch in space_of(job).batches(LOOKED_AT)]
    values = np.concatenate(spans)
    shown = measure(metric)
    return f"; designs range from {shown.show(values.min(), with_unit=True)} to {shown.show(values.max(), with_unit=True)}"
