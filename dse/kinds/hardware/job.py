"""What a hardware experiment asks, checked: a part, what may change about it, and the work it is judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dse.measures import limit, nearest
from spaces.architecture import Architecture
from spaces.hardware import Accelerator
from spaces.hardware.accelerators import derived_formulas, parameter_units
from spaces.hardware.formulas import BadFormulas, Formula, FormulaFault, Formulas, check_formulas

if TYPE_CHECKING:
    from dse.kinds.hardware.schema import File, FormulaSection

LIMITED = ("tpot", "ttft", "request_latency")
"""Metrics that a serving workload may limit."""


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
        formulas=formulas_of(file.formulas),
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


def formulas_of(given: Mapping[str, FormulaSection]) -> Formulas:
    """The engine's formulas with those of the file in place. Raises `BadFormulas`, also for one that nothing would read."""
    own = {name: Formula(text=section.formula, unit=section.unit) for name, section in given.items()}
    derived, units = derived_formulas(), parameter_units()
    known = check_formulas(derived | own, units)
    reads = known.depends()
    faults = [
        FormulaFault(name=name, message=f"is a parameter; say it in design ({name}: …), or give the formula a name of its own")
        if name in units
        else FormulaFault(name=name, message=f"is read by no model and no formula{nearest(name, list(derived))}")
        for name in own
        if name not in derived and (name in units or not reads.out_degree(name))
    ]
    if faults:
        raise BadFormulas(tuple(faults))
    return known
