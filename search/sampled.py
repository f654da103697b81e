"""Sampled search: a method proposes points within a budget; the certificate says what was left unvisited."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from costmodels.metrics import CostModel
from search.archive import Archive
from search.budget import Budget
from search.certificate import Removal
from search.constraint import Constraint
from search.elsewhere import cpu_elsewhere, evaluating
from search.execution import Executor
from search.front import Objective, Points
from search.methods import Method
from search.result import Closest, Progress, Result, Sample
from search.store import TrialStore
from search.visiting import Task
from spaces.columns import IntArray
from spaces.problem import Problem
from spaces.ranking import ranking
from spaces.space import Space

GAVE_UP = "nothing new"
"""Why a search stopped whose method asked for known points alone, though its budget would have paid for more."""


def sampled_search(
    space: Space,
    model: CostModel,
    problem: Problem,
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint] = (),
    *,
    method: Method,
    budget: Budget,
    top: int = 10,
    sample: int = 100_000,
    seed: int = 0,
    start: IntArray | None = None,
    executor: Executor | None = None,
    store: TrialStore | None = None,
    watch: Callable[[Archive], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Result:
    """The front among the points that a method chose to evaluate, within the budget.

    `pruned` counts points that the model's bounds were seen to rule out, `unvisited` all that nobody looked at, and `stopped`
    says why. `start` holds ordinals of points to evaluate first (a front that a cheaper model found), `store` puts every
    batch on record and answers from it, `watch` is called after every batch. Ctrl-C, `cancelled()` and the budget's seconds
    end the search with what was found so far. An `executor` evaluates the batches of a model that is dear enough
    (search/elsewhere.py): the method stays here. Raises what `search.exact.search` raises, and ValueError where the method
    refuses the question.
    """
    clock, processor = time.perf_counter(), time.process_time()
    task = Task(model, problem, tuple(objectives), tuple(constraints))
    numbered = ranking(space)
    kept = np.random.default_rng(seed).spawn(2)

    def told(archive: Archive) -> None:
        if watch is not None:
            watch(archive)
        if progress is not None:
            progress(archive.progress(time.perf_counter() - clock))

    with evaluating(task, executor) as question:
        archive = Archive(
            ranking=numbered,
            question=question,
            most=budget.most(numbered.size),
            top=top,
            deadline=None if budget.seconds is None else clock + budget.seconds,
            cancelled=cancelled,
            told=told,
            store=store,
        )
        try:
            if start is not None:
                archive.evaluate(start)
            method(archive, kept[0])
            if not archive.stopped and len(archive) < archive.most:
                archive.stopped = GAVE_UP
        except KeyboardInterrupt:
            archive.stopped = "interrupted"
    certificate = archive.certificate()
    rows = archive.sample(sample, kept[1])
    signs = np.array([-1.0 if objective.maximize else 1.0 for objective in task.objectives])
    return Result(
        objectives=task.objectives,
        constraints=task.constraints,
        front=archive.front.ordered(),
        top={objective.name: best.points for objective, best in zip(task.objectives, archive.tops, strict=True)},
        certificate=certificate,
        removed=tuple(Removal(axis=axis, reason=reason, count=count) for (axis, reason), count in space.removed().items()),
        sample=Sample(
            columns=numbered.columns(archive.ordinals[rows]),
            values=archive.costs[rows] * signs,
            feasible=archive.violation[rows] <= 0,
            ordinals=archive.ordinals[rows],
        ),
        closest=None if archive.feasible or archive.closest is None else closest(task, archive.closest),
        feasible=archive.feasible,
        failures=archive.failures,
        failed_by_reason=dict(archive.failed),
        bound_failed=dict(archive.broken),
        stopped="" if not certificate.unvisited else archive.stopped or "sampled",
        seed=seed,
        wall_s=time.perf_counter() - clock,
        cpu_s=time.process_time() - processor + cpu_elsewhere(question),
    )


def closest(task: Task, best: Points) -> Closest:
    """The point nearest to feasible, with every constraint it violates."""
    lacks = task.violations(best.metrics, best.columns)
    return Closest(points=best, lacks={name: float(over[0]) for name, over in lacks.items() if over[0] > 0})
