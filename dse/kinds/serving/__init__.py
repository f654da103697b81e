"""The kind `serving`: which plan, aggregated or disaggregated, serves a model under its latency targets, on how many devices.

`schema` is its file, `requests` how traffic is written in it, `job` what the file asks, `plans` its problem and space, `words`
how plans are told, `explanation` takes one apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from costmodels.metrics import CostModel
from costmodels.serving.pools import PooledServingModel
from costmodels.serving.row import RowModel
from costmodels.serving.simulated import SimulatedServing
from costmodels.serving.statistics import EstimatedStatistics
from dse.kinds.registry import Kind
from dse.kinds.serving import job, plans, schema, words
from dse.measures import SERVING
from search.screening import Fidelity
from spaces.columns import Columns
from spaces.problem import Problem

if TYPE_CHECKING:
    from dse.kinds.serving.explanation import Explanation


def _models(asked: job.ServingJob) -> tuple[Fidelity, ...]:
    """The closed form over every plan, then the simulation of those that can still change the front."""
    closed = EstimatedStatistics(model=PooledServingModel(), asked=asked.statistics)
    simulated = SimulatedServing(
        closed=closed,
        traffic=asked.traffic,
        asked=asked.statistics,
        context=asked.context,
        seed=asked.seed,
        router=asked.router,
    )
    screened, last = _in_row(asked, closed), _in_row(asked, simulated)
    agrees = frozenset({"devices", "price_per_hour", "rated_power", "memory"})
    return (
        Fidelity(name="closed form", model=screened),
        Fidelity(name="simulated", model=last, most=asked.simulate, agrees=agrees),
    )


def _in_row(asked: job.ServingJob, model: CostModel) -> CostModel:
    """The model of one server, or of the row that it stands in."""
    row = asked.row
    return model if row is None else RowModel(model=model, budget=row.budget, risk=row.risk, correlation=row.correlation)


def _explained(asked: job.ServingJob, codes: Mapping[str, Any]) -> Explanation:
    from dse.kinds.serving.explanation import explained

    return explained(asked, codes)


def _stages(_problem: Problem, _columns: Columns) -> tuple[tuple[str, Mapping[str, float]], ...]:
    return ()


KIND: Kind[job.ServingJob] = Kind(
    name="serving",
    file=schema.File,
    metrics=SERVING,
    examples=schema.EXAMPLES,
    faults=job.faults,
    default_objectives=job.default_objectives,
    baseline=job.baseline,
    resolved=job.resolved,
    job=job.job_of,
    problem=plans.problem_of,
    space=plans.space_of,
    models=_models,
    point=plans.point,
    codes=plans.plan_codes,
    sampled=frozenset({"device", "prefill.device", "device.domain", *plans.SYMBOLS}),
    title=words.title,
    assumptions=words.assumptions,
    spelled=words.spelled,
    text=words.plan_text,
    shown=("ttft", "tpot", "tokens_per_second_per_device", "price_per_million_tokens", "kv_headroom"),
    breakdowns=(("tpot", "Where the time per token goes"), ("memory", "Where the memory goes")),
    stages=_stages,
    lacking={"rate": words.rate_text, "context": words.context_text},
    explained=_explained,
)
