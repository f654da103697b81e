"""Exact search spread over workers: slices of the space are searched elsewhere and joined in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from search.executors import Executor
from search.front import Points
from search.keeping import State
from search.result import Progress
from search.visiting import Hopeless, Task
from spaces.space import Slice, Space, slices

_GRAIN = 1 << 17  # points of a batch
_FIRST = 1 << 14  # points of a slice before the cost of one is known
_LARGEST = 1 << 21  # points of a slice
_CHUNK_S = 1.0  # seconds of work in a slice


@dataclass(frozen=True, slots=True, eq=False)
class Errand:
    """What a worker does with a slice; it travels to each worker once."""

    task: Task
    none: Points
    axes: tuple[str, ...]
    top: int
    sample: int
    seed: int
    rows: int

    def __call__(self, chunk: tuple[Slice, float]) -> Found:
        """The state after the slice alone; sample keys from the given one on are known to be of no use."""
        part, below = chunk
        processor = time.process_time()
        state = State.empty(self.none, len(self.task.objectives), self.top, self.sample)
        state = replace(state, reservoir=replace(state.reservoir, below=below))
        bits = np.random.PCG64(self.seed)
        bits.advance(part.start)
        random = np.random.Generator(bits)
        offset = part.start
        hopeless = ""
        try:
            for batch in part.batches(self.none.columns.levels, self.axes, self.rows):
                patient = part.start > 0  # only who starts the space may give up
                state = state.after(self.task.visit(batch, state, None, offset, patient), random.random(batch.n))
        except Hopeless as error:
            hopeless = str(error)
        return Found(state, time.process_time() - processor, hopeless)


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What a worker found in a slice, and the CPU seconds it took."""

    state: State
    cpu_s: float
    hopeless: str


def spread(
    space: Space,
    task: Task,
    state: State,
    executor: Executor,
    how: tuple[int, int],
    progress: Callable[[Progress], None] | None,
    cancelled: Callable[[], bool] | None,
) -> tuple[State, str, float]:
    """Search slices of a space with an executor: the state, why it stopped, and the CPU seconds spent elsewhere."""
    clock = time.perf_counter()
    none = state.front.points
    seed, rows = how
    names = tuple(axis.name for axis in space.axes)
    errand = Errand(task, none, names, state.tops[0].limit, state.reservoir.limit, seed, min(rows, _GRAIN))
    size, cost, spent = space.size(), 0.0, 0.0
    below = np.inf

    def chunks() -> Iterator[tuple[Slice, float]]:
        for part in slices(space, lambda _: _chunk(cost)):
            yield part, below

    waiting: dict[int, Found] = {}
    turn = 0
    results = executor.map(errand, chunks())
    try:
        for index, found in results:
            waiting[index] = found
            cost = found.cpu_s / max(found.state.visited, 1)
            spent += found.cpu_s if executor.apart else 0.0
            while turn in waiting:
                ready = waiting.pop(turn)
                turn += 1
                state = state.then(ready.state)
                if ready.hopeless:
                    return state, ready.hopeless, spent
            below = state.reservoir.trimmed().below
            if progress is not None:
                progress(state.progress(size, time.perf_counter() - clock))
            if cancelled is not None and cancelled():
                return state, "cancelled", spent
    except KeyboardInterrupt:
        return state, "interrupted", spent
    finally:
        results.close()
    return state, "", spent


def _chunk(cost: float) -> int:
    """Points of the next slice, by the measured seconds a point: about one second, in whole grains where that is many."""
    if not cost:
        return _FIRST
    points = int(_CHUNK_S / cost)
    return min(points - points % _GRAIN, _LARGEST) if points >= _GRAIN else max(1, points)
