"""A hardware job and its designs in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dse.kinds.hardware.job import HardwareJob
from dse.measures import significant
from spaces.hardware.accelerators import CATEGORIES, names_of, parameters
from spaces.problem import Problem

_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def spelled(problem: Problem, point: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    """A design by name: categorical parameters as words, whole ones as integers, others in SI."""
    named: dict[str, Any] = {}
    for name, value in point.items():
        if name in CATEGORIES:
            named[name] = names_of(name)[int(value)]
        elif name in parameters():
            named[name] = int(value) if parameters()[name].whole else float(value)
    return named


def text(plan: Mapping[str, Any]) -> str:
    """A design in one line: `process N3, memory_stacks 8, clock 1.6 GHz`."""
    return ", ".join(f"{name} {amount(name, value)}" for name, value in plan.items())


def amount(name: str, value: Any) -> str:
    """A parameter's value with its unit."""
    if name in CATEGORIES or isinstance(value, str):
        return str(value)
    unit = parameters()[name].unit
    if not unit:
        return f"{value:g}"
    for scale, prefix in _PREFIXES:
        if abs(value) >= scale:
            return f"{significant(value / scale, 3)} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def spelled_amount(name: str, value: float) -> str:
    """A parameter's code or value in words."""
    return names_of(name)[int(value)] if name in CATEGORIES else amount(name, value)


def title(job: HardwareJob) -> str:
    """The question in one line."""
    work = " and ".join(f"{w.architecture.name} ({w.kind}, {w.devices:,} devices)" for w in job.workloads)
    count = 1
    for levels in job.design.values():
        count *= len(levels)
    return f"{count:,} designs like {job.base.name}, for {work}"


def assumptions(job: HardwareJob) -> tuple[str, ...]:
    """What the figures take for granted, in words."""
    said = [
        f"Performance, performance per dollar and per watt, and latency are relative to {job.base.name}, which scores 1: "
        "weighted geometric means over the workloads, each design with the best plan it has for each.",
        f"A design keeps {job.base.device}'s sustained shares of its peaks, moved by what its arrays, buffers and power cap "
        "change.",
        "Area, power and price are models checked on shipped parts (docs/hardware.md says how well); price is cost times "
        "markup.",
        f"{job.base.name}: {job.base.source}.",
    ]
    if job.fixed:
        same = ", ".join(f"{name} {spelled_amount(name, value)}" for name, value in job.fixed.items())
        said.append(f"In every design: {same}.")
    weights = ", ".join(f"{w.name} {w.weight:g}" for w in job.workloads)
    said.append(f"Weights: {weights}. Dollars are those of owning: capital over its life, interest, site, energy.")
    return tuple(said)
