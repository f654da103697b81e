"""From a hardware job to what the engine takes: a model of machines, a space of designs, and single designs as points of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from costmodels.constants import device_symbols, find_stack
from costmodels.kernel_models.dataflow import Dataflow
from costmodels.metrics import CostModel
from costmodels.serving.problem import serving_problem, serving_symbols
from costmodels.serving.steady_state import ServingModel
from costmodels.serving.switching import SwitchingModel
from costmodels.training import TrainingModel, training_problem
from dse.asking import ImpossiblePlan
from dse.kinds.hardware.job import HardwareJob, Work
from search.codesign import CodesignModel, Workload
from search.screening import Fidelity
from spaces.columns import Columns
from spaces.facts import facts_in
from spaces.hardware import Device, find_device
from spaces.hardware.accelerators import CATEGORIES, names_of, parameter_value, parameters
from spaces.problem import Problem
from spaces.serving_space import serving_space
from spaces.space import Axis, Space
from spaces.training import training_space

PARAMETERS = (*parameters(), *CATEGORIES)
"""What may vary about an accelerator."""


def problem_of(job: HardwareJob) -> Problem:
    """The base's own parameters; designs bind those that vary."""
    base = {name: float(values[0]) for name, values in job.base.columns().items() if name.startswith("chip.")}
    scalars = {name.removeprefix("chip."): value for name, value in base.items()}
    labels = {name: names_of(name) for name in CATEGORIES}
    scalars |= job.fixed
    return Problem(architecture=job.workloads[0].architecture, stack="", scalars=scalars, labels=labels)


def space_of(job: HardwareJob) -> Space:
    """Every combination of the levels."""
    axes = tuple(Axis(name=name, symbols={name: np.array(levels, np.float64)}) for name, levels in job.design.items())
    return Space(axes=axes, labels={name: names_of(name) for name in CATEGORIES})


@lru_cache(maxsize=8)
def model_of(job: HardwareJob) -> CodesignModel:
    """The model of the job's machines; its plans are listed once."""
    device = find_device(job.base.device)
    return CodesignModel(
        base=job.base,
        workloads=tuple(_workload(work, device) for work in job.workloads),
        axes=tuple(job.design),
        fixed=job.fixed,
        formulas=job.formulas,
    )


def models_of(job: HardwareJob) -> tuple[Fidelity, ...]:
    """One model answers for machines."""
    return (Fidelity(name="closed form", model=model_of(job)),)


def point(job: HardwareJob, plan: Mapping[str, Any]) -> Columns:
    """One design as a batch of one; what is left out is the base's. Raises ImpossiblePlan for what is no axis."""
    base = problem_of(job).scalars
    strange = [name for name in plan if name not in job.design]
    if strange:
        raise ImpossiblePlan(f"the experiment does not vary {', '.join(strange)}; it varies {', '.join(job.design)}")
    return Columns.from_values({name: np.array([float(plan.get(name, base[name]))]) for name in job.design})


def codes(job: HardwareJob, plan: str | Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    """A design as numbers, from `memory_stacks=8,clock=1.6 GHz` or from values by name. Raises ImpossiblePlan."""
    given = plan if isinstance(plan, Mapping) else _split(plan)
    try:
        return {name: parameter_value(name, value) for name, value in given.items()}
    except ValueError as error:
        raise ImpossiblePlan(str(error)) from None


def _split(text: str) -> dict[str, Any]:
    pairs = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise ImpossiblePlan(f"expected parameters like memory_stacks=8,process=N3, got {part!r}")
        pairs[name.strip()] = value.strip() if name.strip() in CATEGORIES else facts_in(value)
    return pairs


def _workload(work: Work, device: Device) -> Workload:
    if work.kind == "training":
        return _training(work, device)
    options = {name: tuple(values) for name, values in work.options.items()}
    fixed = {**work.fixed, "devices": float(work.devices)}
    problem = serving_problem(work.architecture, work.stack, device, fixed)
    limits = {name: float(problem.scalars[name]) for name in ("max_batch", "token_budget", "kv_fraction")}
    space = serving_space(architecture=work.architecture, count=work.devices, options=options, defaults=limits)
    return Workload(
        name=work.name,
        weight=work.weight,
        model=_switching(ServingModel(Dataflow()), work.models),
        problem=problem,
        plans=_listed(space, work.name),
        own=serving_symbols(device),
        devices=float(work.devices),
        metric="tokens_per_second_per_device",
        throughput="tokens_per_second_per_device",
        latency="request_latency",
        limits=work.limits,
    )


def _switching(model: ServingModel, models: int) -> CostModel:
    return model if models == 1 else SwitchingModel(model=model, models=float(models))


def _training(work: Work, device: Device) -> Workload:
    problem = training_problem(work.architecture, work.stack, device, work.fixed)
    problem = dataclasses.replace(problem, labels={**problem.labels, "reference": (device.name,)})
    restricted = {axis: tuple(int(value) for value in values) for axis, values in work.options.items()}
    space = training_space(
        architecture=work.architecture,
        devices=(device,),
        count=work.devices,
        global_batch=int(work.fixed["global_batch"]),
        sequence=int(work.fixed["sequence"]),
        options={**find_stack(work.stack).legal, "precision": (int(problem.scalars["precision"]),), **restricted},
    )
    return Workload(
        name=work.name,
        weight=work.weight,
        model=TrainingModel(),
        problem=problem,
        plans=_listed(space, work.name),
        own=device_symbols(device, work.stack),
        devices=float(work.devices),
        metric="step_time",
        throughput="tokens_per_second_per_device",
        latency="step_time",
        limits=work.limits,
    )


MOST_PLANS = 200_000
"""More plans of a workload than this are restricted in the file, not searched for every design."""


class BadPlans(ImpossiblePlan):
    """A `workload` without legal plans, or with too many to try on every design; `why` says which."""

    def __init__(self, workload: str, why: str) -> None:
        super().__init__(f"workload {workload}: {why}")
        self.workload, self.why = workload, why


def _listed(space: Space, name: str) -> Columns:
    """All plans of a workload. Raises BadPlans when there are none, or too many to try on every design."""
    size = space.size()
    if size == 0:
        raise BadPlans(name, f"no legal plan; {'; '.join(reason for _, reason in space.removed())}")
    if size > MOST_PLANS:
        raise BadPlans(name, f"{size:,} plans for every design; restrict its space to {MOST_PLANS:,} or fewer")
    return next(space.batches(rows=max(size, 1)))
