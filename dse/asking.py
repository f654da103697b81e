"""From an experiment to what the engine takes, whatever its kind: a problem, a space, cost models, and single plans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dse.experiment import Experiment
from dse.kinds.registry import find
from search.screening import Fidelity
from spaces.columns import Columns
from spaces.problem import Problem
from spaces.space import Space


class ImpossiblePlan(ValueError):
    """A plan that structure rules out, or a choice that cannot be read; the message says by which rule."""


def problem_of(experiment: Experiment[Any]) -> Problem:
    """Everything that does not vary: model, workload, stack, and the device when there is only one."""
    return find(experiment.kind).problem(experiment.job)


def space_of(experiment: Experiment[Any]) -> Space:
    """Every legal plan that the experiment asks about."""
    return find(experiment.kind).space(experiment.job)


def models_of(experiment: Experiment[Any]) -> tuple[Fidelity, ...]:
    """The cost models that answer, cheapest first: each screens for the next, and the last one's figures are reported."""
    return find(experiment.kind).models(experiment.job)


def point(experiment: Experiment[Any], plan: Mapping[str, Any]) -> Columns:
    """One plan as a batch of one; `plan` holds codes, choices left out take their resting value. Raises ImpossiblePlan."""
    return find(experiment.kind).point(experiment.job, plan)


def plan_codes(experiment: Experiment[Any], plan: str | Mapping[str, Any]) -> dict[str, Any]:
    """A plan as codes, from `tensor=8,pipeline=2` or from names by symbol. Raises ImpossiblePlan with every fault."""
    return find(experiment.kind).codes(experiment.job, plan)
