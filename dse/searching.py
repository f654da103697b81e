"""Which search an experiment asks for, and the search itself: exact, sampled within a budget, or nested."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from costmodels.metrics import CostModel
from dse.experiment import Experiment
from dse.run_store import RunStore
from search.archive import Archive
from search.automatic import UNASKED, chosen, listing
from search.budget import Budget
from search.constraint import Constraint
from search.exact import search
from search.execution import kept
from search.executors import executor
from search.front import Objective
from search.methods import method
from search.nested import nested_search
from search.result import Result
from search.sampled import sampled_search
from search.screening import Fidelity, screen
from spaces.problem import Problem
from spaces.space import Space


def look(
    experiment: Experiment[Any],
    space: Space,
    fidelities: Sequence[Fidelity],
    problem: Problem,
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
    *,
    store: RunStore | None = None,
    progress: Callable[..., None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> tuple[Result, dict[str, Any]]:
    """Search as the experiment says, and what to add to its certificate; what is on record is not evaluated again.

    Of two fidelities the cheap one screens every plan for the dear one, or its front starts the method that is named.
    Raises ValueError where the method cannot answer the question, and what the searches raise.
    """
    model, asked = fidelities[-1].model, (problem, objectives, constraints)
    early = len(fidelities) == 1 and listing(experiment.method, experiment.budget)
    # workers that are sure to be needed start while the plans are counted here
    workers = executor(experiment.executor, experiment.workers, experiment.address)
    with kept(workers, (model, problem) if early else None) as who:
        how: dict[str, Any] = {
            "top": experiment.top,
            "sample": experiment.sample,
            "seed": experiment.seed,
            "progress": progress,
            "cancelled": cancelled,
            "executor": who,
        }
        name = chosen(experiment.method, experiment.budget, space.size())
        if experiment.mirror is not None and name in ("exact", "nested"):
            raise ValueError(
                f"search.mirror shows trials of a sampling method, and this search is {name}: give it a search.budget or "
                "another search.method, or leave the mirror out and use dse export RUN --to optuna afterwards"
            )
        if name == "exact":
            if len(fidelities) == 1:
                return search(space, model, *asked, ledger=store, **how), {}
            return _screened(space, fidelities, asked, how | {"ledger": store})
        if name == "nested":
            return _nested(experiment, space, model, asked, how | {"ledger": store}), {}
        return _sampled(experiment, name, space, fidelities, asked, how | {"store": store}), {}


def _screened(
    space: Space, fidelities: Sequence[Fidelity], asked: tuple[Any, ...], how: dict[str, Any]
) -> tuple[Result, dict[str, Any]]:
    """Every plan by the cheap model, those that can still change the front by the dear one."""
    screened = screen(space, fidelities[0], fidelities[1], *asked, **how)
    stages = [[stage.name, stage.saw] for stage in screened.stages]
    said = {"front_proven": screened.proven.tolist(), "front_unchallenged": screened.unchallenged.tolist()}
    return screened.result, {"stages": stages, "contenders_left": screened.left, **said}


def _sampled(
    experiment: Experiment[Any],
    name: str,
    space: Space,
    fidelities: Sequence[Fidelity],
    asked: tuple[Any, ...],
    how: dict[str, Any],
) -> Result:
    """Some plans within the budget; a cheap model's front comes first where there is one."""
    budget, store = experiment.budget, how["store"]
    if experiment.method == "auto" and not budget.limits_points and budget.seconds is None:
        budget = Budget(points=UNASKED)
    start = None
    if len(fidelities) > 1:
        cheap = search(space, fidelities[0].model, *asked, cancelled=how["cancelled"], ledger=store)
        start = cheap.front.points.ordinals
    watch = _mirror(experiment, asked[1], store)
    model = fidelities[-1].model
    return sampled_search(space, model, *asked, method=method(name), budget=budget, start=start, watch=watch, **how)


def _mirror(
    experiment: Experiment[Any], objectives: Sequence[Objective], store: RunStore | None
) -> Callable[[Archive], None] | None:
    """A listener that writes trials where the experiment asks for it, as a study of the run folder's name: one journal may
    hold all runs of a file."""
    if experiment.mirror is None:
        return None
    from search.optuna_search import mirror

    record, name = (None, experiment.name) if store is None else (store.trials(), store.folder.name)
    return mirror(experiment.mirror, name, [(o.name, o.maximize) for o in objectives], record)


def _nested(experiment: Experiment[Any], space: Space, model: CostModel, asked: tuple[Any, ...], how: dict[str, Any]) -> Result:
    """Outer points by evolution within the budget, or all of them without one; every plan of each."""
    outer = experiment.outer or leading(space)
    if not outer:
        names = ", ".join(axis.name for axis in space.axes)
        raise ValueError(
            "search.method: nested needs machines to choose from: make hardware.device, hardware.devices or hardware.domain a "
            f"choice, or name the first axes of the space in search.outer; the axes are {names}"
        )
    within = "evolutionary" if experiment.budget != Budget() else "exact"
    return nested_search(space, model, *asked, outer=outer, method=within, budget=experiment.budget, **how).result


def leading(space: Space) -> tuple[str, ...]:
    """The first axes of a space that choose machines."""
    names = [axis.name for axis in space.axes]
    count = next((i for i, name in enumerate(names) if not name.startswith("device")), len(names))
    several = any(len(axis.values) > 1 for axis in space.axes[:count])
    return tuple(names[:count]) if several else ()
