"""What the engine predicts for the very requests that a server was sent, to set beside what `calibrate --replay` saw.

The plan is a front member of a serving experiment or run, a plan named beside it, or the cells of a row of `dse predict`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from costmodels.calibration.replay import MEASURES, PERCENTILES
from costmodels.serving.intervals import pairs, sides
from costmodels.serving.pools import PooledServingModel
from costmodels.serving.problem import serving_problem
from costmodels.serving.simulated import serve
from dse import run_folder
from dse.experiment import load
from dse.kinds.serving.plans import one_device, plan_codes, point, problem_of
from dse.kinds.serving.words import plan_text, spelled
from dse.runner import answer_to
from dse.serving_rows import read_serving
from spaces.columns import Columns
from spaces.problem import Problem
from spaces.workload import Requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """A plan to set a server beside: its problem and point (a batch of one), and in words."""

    problem: Problem
    point: Columns
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The plan in words, and every measure as (predicted, low, high): seconds, tokens/s for `throughput`."""

    text: str
    figures: Mapping[str, tuple[float, float, float]]


def read_against(source: str | os.PathLike[str], plan: str | None = None, *, model: str = "") -> Against:
    """The plan meant by a run folder, an experiment file (its first front member, or `plan`), or cells such as `gpu=H100,tp=2`.

    Cells may leave the model out where `model`, its name at the server, says it. Raises ValueError (BadRow, ExperimentError,
    BadRunFolder, ImpossiblePlan) and OSError.
    """
    path = Path(source)
    if "=" in str(source) and not path.exists():
        if plan is not None:
            raise ValueError("--against names a plan by its cells already: leave --plan out")
        return _of_cells(str(source), model)
    folder = path if path.is_dir() else None
    experiment = load(path if folder is None else folder / "experiment.yaml")
    if experiment.kind != "serving":
        raise ValueError(f"{source} is a {experiment.kind} experiment; a server is set beside a serving one")
    chosen: str | Mapping[str, object] | None = plan
    if chosen is None:
        run = answer_to(experiment) if folder is None else run_folder.read(folder)
        if not run.front:
            raise ValueError(f"no plan of {source} is feasible, so there is none to set a server beside: name one with --plan")
        chosen = run.front[0].plan
    codes = plan_codes(experiment.job, chosen)
    job = one_device(experiment.job, codes)
    problem, columns = problem_of(job), point(job, codes)
    row = {**columns.row(0)}
    return Against(problem=problem, point=columns, text=f"{job.devices[0].name} {plan_text(spelled(problem, row))}")


def _of_cells(text: str, model: str) -> Against:
    """Cells of a row of `dse predict --kind serving`, without what is sent."""
    row = {"model": model, "isl": "1", "osl": "1", "concurrency": "1"}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"--against: expected cells like gpu=H100,tp=2, got {part!r}")
        row[name.strip()] = value.strip()
    question = read_serving(row)
    problem = serving_problem(question.architecture, question.stack, question.device, dict(question.symbols))
    columns = Columns.from_values({"data": np.array([question.symbols["data"]])})
    return Against(problem=problem, point=columns, text="; ".join([question.architecture.name, text, *question.assumptions]))


def expected(against: Against, requests: Requests) -> Expected:
    """Serve the requests in simulation on that plan. Raises ValueError where it does not fit in memory."""
    means = {"input_tokens": float(np.mean(requests.prompt)), "output_tokens": float(np.mean(requests.output))}
    load_of = {"request_rate": requests.rate, "concurrency": float(requests.concurrency)}
    scalars = {**against.problem.scalars, **means, **load_of, "prefix_hit": 0.0}
    problem = Problem(
        architecture=against.problem.architecture, stack=against.problem.stack, scalars=scalars, labels=against.problem.labels
    )
    over = float(PooledServingModel().bound(problem, against.point).violation["memory"][0])
    if over > 0:
        raise ValueError(f"the plan of --against does not fit in memory: {100 * over:.0f} % over ({against.text})")
    outcome, overhead = serve(problem, against.point, requests)
    found: dict[str, float] = {}
    for name in MEASURES:
        away = 0.0 if name == "tpot" else overhead
        found[name] = outcome.mean(name) + away
        found |= {f"{name}_p{q}": outcome.percentile(name, q) + away for q in PERCENTILES}
    found["throughput"] = outcome.token_throughput()
    generation = problem.labels.get("generation", ("unknown",))[0]
    return Expected(text=against.text, figures={name: _around(problem.stack, generation, name, v) for name, v in found.items()})


def _around(stack: str, generation: str, name: str, value: float) -> tuple[float, float, float]:
    """A figure with its interval of 90 %."""
    prefix = "first_" if name.startswith("ttft") else "rate_" if name == "throughput" else ""
    low, high = sides(pairs(stack, generation), prefix)
    return value, value * low, value * high if math.isfinite(value) else math.nan
