"""`run`: an experiment file in, a front and a run folder out.

Experiment → Problem + Space → exact search → plans with their figures → run folder and reports.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.metrics import BrokenContract, CostModel, Metrics, require_metrics
from dse import run_folder
from dse.answers import PlanAnswer, Run, answers, with_ties
from dse.asking import ImpossiblePlan, models_of, point, problem_of, space_of
from dse.experiment import Experiment, load
from dse.kinds.registry import find
from dse.recording import Asked, Recording
from dse.run_store import RunStore
from dse.searching import look
from search.conflicts import conflicting
from search.constraint import Constraint
from search.execution import ExecutorError
from search.front import Objective, Points
from search.result import Result
from search.screening import Fidelity
from spaces.columns import UnboundSymbol
from spaces.problem import Problem

RUNS = Path("runs")
"""Where run folders go unless told otherwise."""

Source = str | os.PathLike[str] | Mapping[str, Any]


def run(
    source: Source,
    out: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    progress: Callable[..., None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    model: CostModel | None = None,
) -> Run:
    """Search the experiment's space and write a new run folder, `runs/<name>-<n>` or `out`; nothing is overwritten.

    The folder is written while the search goes on, so that `resume` can go on with it after anything. `overrides` are
    KEY=VALUE texts; `model` is a cost model of your own in place of the kind's; `progress` and `cancelled` go to the search,
    which keeps what it found when cancelled. A folder that cannot be written is told in `Run.trouble`, not raised. Raises
    ExperimentError, ImpossiblePlan, ExecutorError, OSError.
    """
    experiment = load(source, overrides)

    def make() -> Path:
        return run_folder.create(RUNS, experiment.name) if out is None else run_folder.create_at(Path(out))

    recording = Recording.begun(experiment, Asked.of(experiment, source, overrides, model), make, str(out or RUNS))
    return recorded(experiment, recording, progress, cancelled, model)


def recorded(
    experiment: Experiment[Any],
    recording: Recording,
    progress: Callable[..., None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    model: CostModel | None = None,
) -> Run:
    """The run, written down as it goes on; what is on record already is not searched again."""
    try:
        answer = answer_to(experiment, model=model, store=recording.store, progress=progress, cancelled=cancelled)
        return recording.finished(answer if model is not None else with_sensitivity(experiment, answer), experiment.seed)
    except Exception as error:
        if recording.given_up() and isinstance(error, ExecutorError):
            raise ExecutorError(f"{error}; what was found is kept: dse resume {recording.folder}") from error
        raise
    except KeyboardInterrupt:  # outside of the search itself, which would have kept what it found
        kept = recording.given_up()
        raise KeyboardInterrupt(f"dse resume {recording.folder} goes on" if kept else "nothing was on record yet") from None
    finally:
        recording.close()


def answer_to(
    experiment: Experiment[Any],
    *,
    model: CostModel | None = None,
    store: RunStore | None = None,
    progress: Callable[..., None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Run:
    """The run without a folder; `store` holds what was found before, and is told what is found."""
    fidelities = models_of(experiment) if model is None else (Fidelity(name="given", model=model),)
    problem, space = problem_of(experiment), space_of(experiment)
    baseline, unsaid = _baseline(experiment, problem, fidelities[-1].model)
    objectives = [Objective(name=o.metric, metric=o.metric, maximize=o.maximise) for o in experiment.objectives]
    asked = (space, fidelities, problem, objectives, _constraints(experiment))
    result, said = look(experiment, *asked, store=store, progress=progress, cancelled=cancelled)
    answer = _run_of(experiment, problem, result, baseline)
    if not result.feasible and len(fidelities) == 1 and result.certificate.complete:
        words = {one.name: str(limit) for one, limit in zip(asked[-1], experiment.limits, strict=True)}
        conflict = conflicting(space, fidelities[0].model, problem, asked[-1])
        said = {**said, "conflict": [words.get(name, name) for name in conflict]}
    if unsaid:
        said = {**said, "baseline_failed": unsaid}
    answer = dataclasses.replace(answer, certificate={**answer.certificate, **said})
    return _with_stages(answer, problem, result)


def with_sensitivity(experiment: Experiment[Any], answer: Run) -> Run:
    """The run with what its front leans on, where its kind says so and the search was not interrupted."""
    kind = find(experiment.kind)
    if kind.sensitivity is None or not answer.front or answer.stopped == "interrupted":
        return answer
    codes = [kind.codes(experiment.job, member.plan) for member in answer.front]
    evaluated = int(answer.certificate["evaluated"])
    return dataclasses.replace(answer, sensitivity=kind.sensitivity(experiment.job, codes, answer.objectives, evaluated))


def _with_stages(answer: Run, problem: Problem, result: Result) -> Run:
    """The winner told how its memory lies on each distinct pipeline stage."""
    if not answer.front:
        return answer
    stages = find(answer.kind).stages(problem, result.front.points.columns.take(slice(0, 1)))
    first = dataclasses.replace(answer.front[0], stages=stages)
    return dataclasses.replace(answer, front=(first, *answer.front[1:]))


def _baseline(experiment: Experiment[Any], problem: Problem, model: CostModel) -> tuple[PlanAnswer | None, str]:
    """The plan run today under the same model, or why that failed: a point like any other, for which no search ends."""
    if experiment.baseline is None:
        return None, ""
    try:
        columns = point(experiment, experiment.baseline)
    except ImpossiblePlan as error:
        raise ImpossiblePlan(f"baseline: {error}") from None
    try:
        metrics = model.evaluate(problem, columns)
        require_metrics(metrics, columns.n, model)
        (answer,) = answers(find(experiment.kind), problem, columns, _limited(experiment, metrics))
    except (UnboundSymbol, BrokenContract):
        raise
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
    broken = [choice.metric for choice in experiment.objectives if not math.isfinite(answer.figures[choice.metric].value)]
    return (None, f"not a finite number: {', '.join(broken)}") if broken else (answer, "")


def _constraints(experiment: Experiment[Any]) -> list[Constraint]:
    return [Constraint(metric=limit.metric, limit=limit.value, upper=limit.at_most) for limit in experiment.limits]


def _limited(experiment: Experiment[Any], metrics: Metrics) -> Metrics:
    """The metrics with the violations of the experiment's own limits."""
    own = {limit.name: limit.violation(metrics.value[limit.metric]) for limit in _constraints(experiment)}
    return dataclasses.replace(metrics, violation={**metrics.violation, **own})


def _run_of(experiment: Experiment[Any], problem: Problem, result: Result, baseline: PlanAnswer | None) -> Run:
    kind = find(experiment.kind)
    objectives = tuple((choice.metric, choice.maximise) for choice in experiment.objectives)

    def plans(points: Points) -> tuple[PlanAnswer, ...]:
        return answers(kind, problem, points.columns, _limited(experiment, points.metrics))

    return Run(
        kind=kind.name,
        name=experiment.name,
        folder=None,
        experiment=experiment.to_yaml(),
        title=kind.title(experiment.job),
        objectives=objectives,
        front=with_ties(plans(result.front.points), objectives),
        top={name: plans(found) for name, found in result.top.items()},
        baseline=baseline,
        closest=None if result.closest is None else plans(result.closest.points)[0],
        certificate=_certificate(result),
        removed=tuple((rule.axis, rule.reason, rule.count) for rule in result.removed),
        assumptions=kind.assumptions(experiment.job),
        wall_s=result.wall_s,
        cpu_s=result.cpu_s,
        sample=_sample(result, kind.sampled),
    )


def _certificate(result: Result) -> dict[str, Any]:
    """The certificate with its verdict and, where points are unvisited, why."""
    proved = {"complete": result.certificate.complete, "stopped": result.stopped}
    broken = {"bound_failed_by_reason": dict(result.bound_failed)} if result.bound_failed else {}
    return dataclasses.asdict(result.certificate) | proved | {"failed_by_reason": dict(result.failed_by_reason)} | broken


def _sample(result: Result, symbols: frozenset[str]) -> dict[str, NDArray[Any]]:
    """The given symbols and the objectives of the sampled points, one column each, and whether each is feasible."""
    columns = result.sample.columns
    plain = {symbol: columns[symbol] for symbol in columns.levels if symbol in symbols}
    values = {f"metric.{o.name}": result.sample.values[:, i] for i, o in enumerate(result.objectives)}
    return {**plain, **values, "feasible": result.sample.feasible.astype(np.int64)}
