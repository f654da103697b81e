"""The kind `hardware`: which machine does several jobs best, each design with its own best plan for each of them.

`schema` is its file, `job` what the file asks, `designs` its model and space, `checks` what no section can see alone, `words`
how designs are told, `explanation` what one answer leans on, `sensitivity` what a front does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dse.kinds.hardware import checks, designs, job, schema, words
from dse.kinds.registry import Kind
from dse.measures import HARDWARE
from spaces.columns import Columns
from spaces.problem import Problem

if TYPE_CHECKING:
    from dse.kinds.hardware.explanation import Explanation


def _explained(asked: job.HardwareJob, codes: Mapping[str, Any]) -> Explanation:
    from dse.kinds.hardware.explanation import explained

    return explained(asked, codes)


def _sensitivity(
    asked: job.HardwareJob, members: Sequence[Mapping[str, Any]], objectives: Sequence[tuple[str, bool]], evaluated: int
) -> dict[str, Any]:
    from dse.kinds.hardware.sensitivity import sensitivity

    return sensitivity(asked, members, objectives, evaluated)


def _no_stages(_: Problem, __: Columns) -> tuple[tuple[str, Mapping[str, float]], ...]:
    return ()


def _no_baseline(_: schema.File) -> None:
    return None


KIND: Kind[job.HardwareJob] = Kind(
    name="hardware",
    file=schema.File,
    metrics=HARDWARE,
    examples=schema.EXAMPLES,
    faults=checks.faults,
    default_objectives=job.default_objectives,
    baseline=_no_baseline,
    resolved=job.resolved,
    job=job.job_of,
    problem=designs.problem_of,
    space=designs.space_of,
    models=designs.models_of,
    point=designs.point,
    codes=designs.codes,
    sampled=frozenset(designs.PARAMETERS),
    title=words.title,
    assumptions=words.assumptions,
    spelled=words.spelled,
    text=words.text,
    shown=("performance_per_dollar", "performance_per_watt", "performance", "die_area", "capital"),
    breakdowns=(("capital", "What a device with its share of the cluster costs"), ("die_area", "Silicon"),
                ("design_power", "Power at full activity, before the cap")),
    stages=_no_stages,
    explained=_explained,
    sensitivity=_sensitivity,
)  # fmt: skip
