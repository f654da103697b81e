"""What the members of a front lean on, as plain values for the run folder: elasticities, next bottlenecks, break-even points.

Every figure is that of a design with its best plan for every workload, found again by the exact search of `search.inner`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dse.kinds.hardware.designs import model_of, point
from dse.kinds.hardware.explanation import METRICS, Neighbourhood, best_plans_text, sentence
from dse.kinds.hardware.job import HardwareJob
from search.sensitivity import GROWTH, OTHERS, Elasticity, next_bottleneck

MEMBERS = 50
"""Front members whose elasticities are found, from the first on."""
DESIGNS = 600
"""Neighbours looked at for break-even points, at least; a run that evaluated more designs looks at as many."""


def sensitivity(
    job: HardwareJob, members: Sequence[Mapping[str, Any]], objectives: Sequence[tuple[str, bool]], evaluated: int
) -> dict[str, Any]:
    """Of front members given by codes, in order: all objectives' elasticities, and break-even points of the first ones.

    `evaluated` is how many designs the run looked at; break-even points take the first member's neighbours at least, and
    those of further members while they are no more than that (or DESIGNS). Plain values, as `sensitivity.json` holds them:
    `elasticities[metric][parameter]` are d log metric / d log parameter upwards and downwards.
    """
    told = [_member(job, codes, objectives) for codes in members[:MEMBERS]]
    left, deep = max(evaluated, DESIGNS), 0
    for codes, member in zip(members, told, strict=False):
        around = Neighbourhood.of(job, point(job, codes))
        left -= _asked(len(around.names))
        if left < 0 and deep:
            break
        evens = around.break_evens("performance")
        member["break_evens"] = [
            {
                "parameter": e.parameter,
                "metric": e.metric,
                "value": e.value,
                "other": e.other,
                "at": e.at,
                "beyond": e.beyond,
                "said": sentence(e),
            }
            for e in evens
        ]
        deep += 1
    return {"front": len(members), "with_elasticities": len(told), "with_break_evens": deep, "members": told}


def _asked(parameters: int) -> int:
    """Designs that the break-even points of so many parameters look at, at most."""
    return parameters * len(GROWTH) + 2 * parameters * (parameters - 1) * len(OTHERS)


def _member(job: HardwareJob, codes: Mapping[str, Any], objectives: Sequence[tuple[str, bool]]) -> dict[str, Any]:
    columns = point(job, codes)
    around = Neighbourhood.of(job, columns)
    metrics = tuple(dict.fromkeys([*(metric for metric, _ in objectives), *METRICS]))
    found = around.elasticities(metrics)
    return {
        "best_plans": dict(best_plans_text(model_of(job), columns)),
        "elasticities": {metric: _by_parameter(found, metric) for metric in metrics},
        "next_bottleneck": {metric: next_bottleneck(found, metric, maximise=up) for metric, up in objectives},
        "break_evens": None,
    }


def _by_parameter(found: Sequence[Elasticity], metric: str) -> dict[str, dict[str, float]]:
    return {e.parameter: {"up": e.up, "down": e.down} for e in found if e.metric == metric}
