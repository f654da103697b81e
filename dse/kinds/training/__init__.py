"""The kind `training`: which parallel plan trains a model fastest, in what memory, at what price.

`schema` is its file, `job` what the file asks, `plans` its problem and space, `words` how plans are told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from costmodels.explanation import stage_memory
from costmodels.financing import FinancedTraining
from costmodels.metrics import CostModel
from costmodels.training import TrainingModel
from dse.kinds.registry import Kind
from dse.kinds.training import job, plans, schema, words
from dse.measures import TRAINING
from search.screening import Fidelity
from spaces.plan import PLAN_SYMBOLS

if TYPE_CHECKING:
    from dse.kinds.training.explanation import Explanation


def _models(asked: job.TrainingJob) -> tuple[Fidelity, ...]:
    model: CostModel = TrainingModel()
    if asked.purchase is not None:
        bought = asked.purchase
        model = FinancedTraining(model=model, years=bought.years, device_prices=bought.device_prices)
    return (Fidelity(name="closed form", model=model),)


def _explained(asked: job.TrainingJob, codes: Mapping[str, Any]) -> Explanation:
    from dse.kinds.training.explanation import explained

    return explained(asked, codes)


KIND: Kind[job.TrainingJob] = Kind(
    name="training",
    file=schema.File,
    metrics=TRAINING,
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
    sampled=frozenset({"device", "device.domain", *PLAN_SYMBOLS}),
    title=words.title,
    assumptions=words.assumptions,
    spelled=words.spelled,
    text=words.plan_text,
    shown=("step_time", "memory", "mfu", "tokens_per_second_per_device"),
    breakdowns=(("step_time", "Where the step goes"), ("memory", "Where the memory goes"),
                ("buying_price", "What buying costs")),
    stages=stage_memory,
    explained=_explained,
)
