"""Exact search: every legal point is pruned by a bound, evaluated or reported, and the certificate adds them up.

Points come from the space in batches. The model's bound removes those that cannot fit (before any time is computed) and,
when asked, those that cannot reach the front or a top list; the rest are evaluated once. What is kept is bounded: the
front, the top lists, a sample, and tallies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from costmodels.metrics import CostModel
from search.certificate import Certificate, Failure, Removal
from search.constraint import Constraint
from search.execution import Executor, Serial, kept
from search.front import Objective
from search.keeping import Screen, State
from search.result import Closest, Progress, Result, Sample
from search.spreading import Errand, Spread
from search.store import Ledger
from search.visiting import Hopeless, Task
from spaces.columns import Columns
from spaces.listing import Listing
from spaces.problem import Problem
from spaces.space import Space

__all__ = [
    "Certificate", "Closest", "Constraint", "Failure", "Progress", "Removal", "Result", "Sample", "search",
]  # fmt: skip

_GRAIN = 1 << 17  # bounds are compared with the front as it was at multiples of this ordinal, whatever the batch size


def search(
    space: Space,
    model: CostModel,
    problem: Problem,
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint] = (),
    *,
    top: int = 10,
    sample: int = 100_000,
    seed: int = 0,
    rows: int = 1 << 16,
    prune_dominated: bool = False,
    progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    executor: Executor | None = None,
    ledger: Ledger | None = None,
) -> Result:
    """The exact front, the `top` feasible points by each objective, and the certificate.

    A point is feasible when no violation of the model or of `constraints` is above 0. With `prune_dominated` a point is
    also dropped (reason `dominated`) when its bounds prove that it can reach neither the front nor a top list; that needs
    bounds of every objective and changes neither. `rows` (in one process at most 131,072) changes speed and memory
    only. Ctrl-C or `cancelled()` ends the search with what was found so far; the rest is `unvisited`.

    With an `executor` or a `ledger` slices of the space are searched by themselves and joined in order: the answer is the
    same whoever does the work, `cpu_s` counts workers too, and slices on record in the ledger are taken from there. But
    `prune_dominated` is refused then (what it prunes would hang on the slices).

    A point that makes the model raise, or whose objectives or violations are not finite, is `failed` and the search goes
    on. Raises ValueError for no objectives, or for objectives and constraints that neither the model nor the space knows;
    `UnboundSymbol` when the model reads a symbol that nothing binds.
    """
    clock, processor = time.perf_counter(), time.process_time()
    task = Task(model, problem, tuple(objectives), tuple(constraints))
    apart = executor is not None or ledger is not None
    if apart and prune_dominated:
        raise ValueError("prune_dominated needs a search in one process: leave the executor and the ledger out")
    stopped = ""
    elsewhere = 0.0
    with kept(executor or Serial(), task) as who:
        none = task.none(space)
        size = space.size()
        state = State.empty(none, len(task.objectives), top, sample)
        try:
            if apart:
                names = tuple(axis.name for axis in space.axes)
                errand = Errand(task, Listing.of(space), none, names, top, sample, seed, rows)
                spread = Spread(space=space, errand=errand, executor=who, ledger=ledger, state=state)
                spread.run(progress, cancelled)
                state, stopped, elsewhere = spread.state, spread.stopped, spread.elsewhere
            else:
                random = np.random.default_rng(seed)
                screen: Screen | None = None
                for batch in _pieces(space.batches(min(rows, _GRAIN))):
                    if cancelled is not None and cancelled():
                        stopped = "cancelled"
                        break
                    if prune_dominated and state.visited % _GRAIN == 0:
                        screen = Screen.of(state)
                    keys, visit = random.random(batch.n), task.visit(batch, state, screen)
                    state = state.after(visit, keys[visit.places])  # one assignment: Ctrl-C finds a whole state
                    if progress is not None:
                        progress(state.progress(size, time.perf_counter() - clock))
        except KeyboardInterrupt:
            stopped = "interrupted"
        except Hopeless as hopeless:
            stopped = str(hopeless)
    return Result(
        objectives=task.objectives,
        constraints=task.constraints,
        front=state.front.ordered(),
        top={objective.name: kept.points for objective, kept in zip(task.objectives, state.tops, strict=True)},
        certificate=Certificate(
            space=size,
            pruned=dict(state.pruned),
            evaluated=state.evaluated,
            failed=state.failed,
            unvisited=size - state.visited,
        ),
        removed=tuple(Removal(axis=axis, reason=reason, count=count) for (axis, reason), count in space.removed().items()),
        sample=state.reservoir.sample(task.objectives),
        closest=None if state.feasible else task.closest(state),
        feasible=state.feasible,
        failures=state.failures,
        failed_by_reason=dict(state.reasons),
        bound_failed=dict(state.broken),
        stopped=stopped,
        seed=seed,
        wall_s=time.perf_counter() - clock,
        cpu_s=time.process_time() - processor + elsewhere,
    )


def _pieces(batches: Iterator[Columns]) -> Iterator[Columns]:
    """The batches, cut where the ordinal passes a multiple of the grain."""
    ordinal = 0
    for batch in batches:
        cut = _GRAIN - ordinal % _GRAIN
        ordinal += batch.n
        if cut >= batch.n:
            yield batch
        else:
            yield batch.take(slice(0, cut))
            yield batch.take(slice(cut, batch.n))
