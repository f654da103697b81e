"""What no section of a hardware experiment can see alone: formulas, designs nobody can build, constraints that conflict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodels.machines.area import die_areas, reticle_violation
from costmodels.machines.power import static_power
from costmodels.machines.tables import constants
from dse.kinds.hardware.designs import BadPlans, model_of, problem_of, space_of
from dse.kinds.hardware.job import LIMITED, HardwareJob, formulas_of, job_of
from dse.kinds.hardware.words import spelled_amount
from dse.locations import Fault
from dse.measures import limit, measure, nearest
from search.conflicts import smallest_conflict
from search.constraint import Constraint
from spaces.columns import FloatArray
from spaces.hardware.accelerators import BadFigure
from spaces.hardware.formulas import BadFormulas
from spaces.hardware.topology import ImpossibleTopology

if TYPE_CHECKING:
    from dse.kinds.hardware.schema import File

LOOKED_AT = 20_000
"""Designs at a time."""
MOST = 1_000_000
"""Designs at most that are all looked at before anything runs; of more, those that change one parameter of the first."""


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
                wanted = limit(name, value)
            except ValueError as error:
                yield Fault(path=("workloads", i, "limits", name), message=str(error))
                continue
            if not 0 < wanted < np.inf:
                message = f"a limit must be a positive, finite time, such as 50 ms; got {value}"
                yield Fault(path=("workloads", i, "limits", name), message=message)


def _design_faults(file: File) -> Iterable[Fault]:
    """Designs nobody can build: links that cannot connect the domain, figures that no device has, packages nobody makes."""
    job = job_of(file)
    dark, large, least = True, True, (np.inf, np.inf)
    for changes in _changes(job):
        try:
            at = file.base.columns(changes, job.formulas)
            _whole(at, changes)
        except ImpossibleTopology as error:
            linked = next((name for name in ("scale_up_topology", "scale_up_domain") if name in file.design), None)
            yield Fault(path=("design", linked) if linked else ("formulas",), message=str(error))
            return
        except BadFigure as error:
            yield Fault(path=("formulas", error.name) if error.name in file.formulas else ("design",), message=str(error))
            return
        except ValueError as error:
            yield Fault(path=("design",), message=str(error))
            return
        drawn, exposed = static_power(at), np.maximum(*die_areas(at))
        dark &= bool((at["device.power"] <= drawn).all())
        large &= bool((reticle_violation(at) > 0).all())
        least = min(least[0], float(drawn.min())), min(least[1], float(exposed.min()))
    if dark:
        message = f"the power caps leave no clock: the silicon draws {least[0]:.0f} W or more before anything is computed"
        yield Fault(path=("design", "power") if "power" in file.design else ("design",), message=message)
    if large:
        most = constants("area")["largest_die"]
        message = f"no design can be made: its dies are {least[1]:,.0f} mm² or more, and a reticle exposes {most:.0f} mm²"
        yield Fault(path=("design",), message=f"{message}; more dies or fewer cores would do")


def _changes(job: HardwareJob) -> Iterator[dict[str, Any]]:
    """Every design as changes to the base, in batches; of very many, those that change one parameter of the first."""
    space = space_of(job)
    if space.size() <= MOST:
        for batch in space.batches(LOOKED_AT):
            yield {**job.fixed, **{name: batch[name] for name in job.design}}
        return
    for name, levels in job.design.items():
        fixed = {**job.fixed, **{other: values[0] for other, values in job.design.items()}}
        yield {**fixed, name: np.array(levels, np.float64)}


_NEEDED = (
    "device.matrix_flops.bf16",
    "device.vector_flops",
    "device.memory_capacity",
    "device.memory_bandwidth",
    "device.scale_up_bandwidth",
    "device.nic_bandwidth",
    "device.host_link_bandwidth",
    "device.power",
)
"""Figures without which a device does nothing."""
_COUNTS = ("device.domain", "device.per_node")


def _whole(at: Mapping[str, FloatArray], changes: Mapping[str, Any]) -> None:
    """Raise BadFigure for a device that lacks what all need, or has no whole number of neighbours, saying which design."""
    for name in (*_NEEDED, *_COUNTS):
        counted = name in _COUNTS
        bad = np.flatnonzero((at[name] < 1) | (at[name] != np.round(at[name])) if counted else at[name] <= 0)
        if len(bad):
            design = ", ".join(
                f"{parameter} {spelled_amount(parameter, np.broadcast_to(values, at[name].shape)[bad[0]])}"
                for parameter, values in changes.items()
            )
            wanted = "it is a whole number from 1" if counted else "no device does without"
            figure = name.removeprefix("device.")
            raise BadFigure(name, f"{figure} comes out at {at[name][bad[0]]:g} with {design}; {wanted}")


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
    if space_of(job).size() > MOST:
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
