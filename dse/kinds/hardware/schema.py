"""The sections of a hardware experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import BeforeValidator, Field, InstanceOf, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from costmodels.constants import stack_names
from costmodels.serving.stack import serving_stack_names
from dse.kinds.serving.schema import coded
from dse.kinds.training.schema import Space as TrainingSpace
from dse.measures import nearest
from dse.schema.fields import one_of, read_count, said
from dse.schema.sections import Count, Limits, Model, Number, Objectives, Question, Section, Text
from spaces.hardware import Accelerator, find_accelerator
from spaces.hardware.accelerators import CATEGORIES, parameter_value, parameters
from spaces.serving_plan import SERVING_PLAN

EXAMPLES: Mapping[tuple[str, ...], str] = {
    ("kind",): "kind: hardware",
    ("base",): "base: H100",
    ("design",): "design: {memory_stacks: [4, 6, 8], clock: {from: 1.2 GHz, to: 2 GHz, steps: 5}}",
    ("workloads",): "workloads: [{name: train, kind: training, …}, {name: serve, kind: serving, …}]",
}
"""What to write for a key that is missing."""


def _every_workload_names_its_own(_: object) -> None:
    raise ValueError("a hardware experiment has no model of its own: every workload names one, workloads.0.model")


def read_base(value: object) -> Accelerator:
    """A described part's name."""
    if not isinstance(value, str):
        raise ValueError(f"expected an accelerator's name, got {said(value)}")
    return find_accelerator(value)


def read_design(value: object) -> dict[str, tuple[float, ...]]:
    """Parameters with one value, a list, or {from, to, steps}; values as symbols hold them."""
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"expected parameters with their values, got {said(value)}")
    design, wrong = {}, []
    for name, given in value.items():
        faults = [*_level_faults(str(name), given)]
        wrong += faults
        if not faults:
            design[str(name)] = read_axis(str(name), given)
    if wrong:
        raise ValidationError.from_exception_data("design", wrong)
    return design


MOST_STEPS = 10_000
"""Steps of a range at most."""


def _level_faults(name: str, given: object) -> Iterator[InitErrorDetails]:
    """What is wrong with one parameter, each level of a list at its own place in the file."""
    levels: list[tuple[tuple[str | int, ...], object]] = [((name,), given)]
    if isinstance(given, list) and len(given) > 1 and name in (*parameters(), *CATEGORIES):
        levels = [((name, i), [level]) for i, level in enumerate(given)]
    for place, level in levels:
        try:
            read_axis(name, level)
        except ValueError as error:
            yield InitErrorDetails(type=PydanticCustomError("level", "{said}", {"said": str(error)}), loc=place, input=level)


def read_axis(name: str, given: object) -> tuple[float, ...]:
    """The levels of one parameter, ascending for numbers. Raises ValueError, naming the parameter."""
    known = (*parameters(), *CATEGORIES)
    if name not in known:
        raise ValueError(f"an accelerator has no parameter {name!r}{nearest(name, list(known))}")
    if isinstance(given, Mapping):
        if set(given) != {"from", "to", "steps"} or name in CATEGORIES:
            raise ValueError(f"{name}: expected a value, a list, or {{from: …, to: …, steps: 5}}")
        low, high = (parameter_value(name, given[end]) for end in ("from", "to"))
        steps = read_count(given["steps"])
        if steps > MOST_STEPS:
            raise ValueError(f"{name}: {steps:,} steps of one parameter are too many; {MOST_STEPS:,} at most")
        if high <= low or steps < 2:
            raise ValueError(f"{name}: a range goes up, in two steps or more; got {given['from']} to {given['to']}")
        levels = np.linspace(low, high, steps)
        return tuple(float(level) for level in (np.unique(np.round(levels)) if parameters()[name].whole else levels))
    values = given if isinstance(given, list) else [given]
    if not values:
        raise ValueError(f"{name}: an empty list leaves nothing to choose from; leave the key out to keep the base's value")
    return tuple(dict.fromkeys(parameter_value(name, value) for value in values))


def read_serving_axes(value: object) -> dict[str, list[float]]:
    """Axes of one engine with the values they are restricted to, as codes."""
    if not isinstance(value, Mapping):
        raise ValueError(f"expected axes such as tensor and max_batch with their values, got {said(value)}")
    axes: dict[str, list[float]] = {}
    wrong = []
    for name, given in value.items():
        try:
            if name not in SERVING_AXES:
                raise ValueError(f"no axis of an engine is called {name!r}{nearest(name, list(SERVING_AXES))}")
            levels = given if isinstance(given, list) else [given]
            if not levels:
                raise ValueError("an empty list leaves nothing to choose from; leave the key out to open every legal value")
            axes[name] = [coded(name)(one) for one in levels]
        except ValueError as error:
            told = PydanticCustomError("axis", "{said}", {"said": str(error)})
            wrong.append(InitErrorDetails(type=told, loc=(str(name),), input=given))
    if wrong:
        raise ValidationError.from_exception_data("space", wrong)
    return axes


SERVING_AXES = tuple(name for name in SERVING_PLAN if name != "devices")
"""What a serving workload's space may restrict; a design serves from one pool."""


class FormulaSection(Section):
    """One derived quantity; `unit` is asked for by the check that reads all formulas."""

    formula: Text
    unit: str | None = None


class TrainingWork(Section):
    """What a training step is."""

    sequence: Count
    global_batch: Count


class ServingWork(Section):
    """What requests are: tokens in and out, and how many run at once or arrive in a second."""

    input_tokens: Count
    output_tokens: Count
    concurrency: Count | None = None
    request_rate: Number | None = None


class TrainingWorkload(Section):
    """A model to train on so many of the devices."""

    name: Text
    kind: Literal["training"]
    model: Model
    devices: Count
    weight: Number = 1.0
    workload: TrainingWork
    stack: Annotated[str, BeforeValidator(one_of("stack", stack_names))] = "megatron"
    space: TrainingSpace | None = None


class ServingWorkload(Section):
    """A model to serve on so many of the devices; with `models`, one of so many of its size, asked for uniformly."""

    name: Text
    kind: Literal["serving"]
    model: Model
    devices: Count
    weight: Number = 1.0
    workload: ServingWork
    stack: Annotated[str, BeforeValidator(one_of("serving stack", serving_stack_names))] = "vllm"
    space: Annotated[dict[str, list[float]], BeforeValidator(read_serving_axes)] = Field(default_factory=dict)
    limits: dict[str, float | str] = Field(default_factory=dict)
    models: Count = 1


AnyWorkload: TypeAlias = Annotated[TrainingWorkload | ServingWorkload, Field(discriminator="kind")]


class File(Question):
    """A hardware experiment."""

    model: Annotated[Any, BeforeValidator(_every_workload_names_its_own)] = None
    base: Annotated[InstanceOf[Accelerator], BeforeValidator(read_base)]
    design: Annotated[dict[str, tuple[float, ...]], BeforeValidator(read_design)]
    formulas: dict[str, FormulaSection] = Field(default_factory=dict)
    workloads: Annotated[list[AnyWorkload], Field(min_length=1)]
    objectives: Objectives | None = None
    constraints: Limits = ()
